"""Runs a model with the rules of a method, by transforming its program.

The model's `apply` is traced to a jaxpr; every weight leaf is followed through views (transpose,
reshape, cast, slice of a stack) and through control flow to its uses, and each use is evaluated
by a rule instead. Reading order: `views`; `uses` with `dot`, `lookup` and `convolution`; `tags`;
`frames`, `control`, `interpret`; `calls`, `discover`, `adapt`; `linen`, `nnx`, `wrap`.
"""
