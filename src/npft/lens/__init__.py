"""Quantization seen as a perturbation: what each kind costs (Gong et al., arXiv 2403.06408)."""
