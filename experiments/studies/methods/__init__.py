"""All methods on one task at one budget."""
