"""What a row of a batch may depend on: equalities that every method keeps, or refuses by name."""
