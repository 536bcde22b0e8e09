"""Adapters in the files of AdapterHub: in and out."""
