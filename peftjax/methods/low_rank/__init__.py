"""Changes of low rank: LoRA and what grew out of it."""
