"""Clustering: embeddings to speaker labels. One module per method."""
