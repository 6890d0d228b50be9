"""Segmentation networks: which of a few local speakers are active in each frame."""
