"""Rotations of weights and of activations."""
