"""What do methods forget for what they learn? The drift of embeddings over the loss."""
