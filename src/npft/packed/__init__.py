"""Packed weights: their layouts, kernels and layers, and models that run on them."""
