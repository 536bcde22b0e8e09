"""One vector moves all weights inside a random subspace."""
