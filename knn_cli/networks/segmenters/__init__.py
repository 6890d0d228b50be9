"""Segmentation networks: who of a few local speakers speaks in each frame."""
