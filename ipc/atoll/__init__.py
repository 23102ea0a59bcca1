"""Atoll: an operating system for one node, in user space."""
