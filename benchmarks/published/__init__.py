"""Rows of published tables, their methods as ours: what `benchmarks.paper_counts` counts."""
