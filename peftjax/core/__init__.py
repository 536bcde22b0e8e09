"""The values of peftjax and their algebra: no tracing, no input or output."""
