"""Writing text: sampling from a decoder with a cache of keys and values."""
