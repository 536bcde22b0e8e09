"""Sweeps: many runs in one program, their folders, their page."""
