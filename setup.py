"""Builds the C core: everything else about the package is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=["native/build.py:builder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
