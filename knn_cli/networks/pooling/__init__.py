"""Pooling: hidden layers to one embedding per clip."""
