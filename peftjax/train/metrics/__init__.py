"""Scores of a whole split, from well-kept libraries."""
