"""Who spoke when: segmentation, window embeddings, clustering, reconstruction, identification, speaker removal."""
