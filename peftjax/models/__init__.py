"""Model families in Flax Linen, with the names and numbers of their Hugging Face checkpoints."""
