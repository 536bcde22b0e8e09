"""Changes of a structure other than low rank: diagonal, circulant, Fourier, Kronecker."""
