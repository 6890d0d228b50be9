"""Language and speaker recognition on embeddings: classifiers, calibration, splits, verification, timelines."""
