"""Bit-packed formats of quantized weights."""
