"""Scores of a whole split, from well-maintained libraries."""
