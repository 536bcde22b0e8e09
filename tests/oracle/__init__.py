"""Adapters written by other libraries, with their logits and gradients, to check ours against."""
