"""Latency, memory and the share of the bandwidth floor, beside rivals: ``npft bench``."""
