"""Importers: published checkpoints to our networks. One module per source."""
