"""Classification heads: embeddings to scores and training losses."""
