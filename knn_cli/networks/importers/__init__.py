"""Importers: published checkpoints to networks of ours."""
