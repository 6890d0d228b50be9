"""Clustering methods: embeddings to speaker labels."""
