"""Schemes that keep a frozen base in few bits."""
