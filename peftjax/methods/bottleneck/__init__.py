"""Small networks at the outputs of modules, and unions with other methods."""
