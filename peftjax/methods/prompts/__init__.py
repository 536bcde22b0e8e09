"""Virtual tokens at the input or inside the attention."""
