"""Atoll as a person gets it: a node booted from an image, servers at their levels, programs that attach."""
