"""A Sphinx extension that writes the pages of methods and public names, and the pictures."""
