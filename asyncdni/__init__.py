"""Decoupled training of neural networks over worker processes."""

__version__ = "0.1.0"
