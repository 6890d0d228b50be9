"""HDF5 stores of audio and embeddings, labels from paths, Kaldi and other embedding files, and conversions of these."""
