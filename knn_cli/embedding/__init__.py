"""Sound to vectors: the embedder, files and stores."""
