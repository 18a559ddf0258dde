"""npft: make language models robust to quantization before they are quantized."""

from npft import announcing

announcing.after_import()
