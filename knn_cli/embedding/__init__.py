"""Sound to embeddings: the embedder, files and stores."""
