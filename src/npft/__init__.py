"""npft: make language models robust to quantization before they are quantized."""
