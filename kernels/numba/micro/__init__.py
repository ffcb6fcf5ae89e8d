"""Pieces of kernels: vectors, register tiles, and what lays memory out for them."""
