"""Low-rank changes: LoRA and its relatives."""
