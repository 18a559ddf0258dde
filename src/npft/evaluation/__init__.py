"""Quality of a model: perplexity and divergence from the original."""
