"""Pooling back ends: hidden layers to one embedding per clip."""
