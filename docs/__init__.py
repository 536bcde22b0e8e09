"""The sources of the site, and in `_ext` the code that writes its generated pages."""
