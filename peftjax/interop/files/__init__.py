"""Files of any format, read and written safely: links, sizes, digests, one save at a time."""
