"""Who spoke when: segmentation, window embeddings, clustering, reconstruction, identification of enrolled speakers,
linking over recordings, speaker removal.
"""
