"""The methods in rows of published tables, as methods of peftjax, for `benchmarks.paper_counts`."""
