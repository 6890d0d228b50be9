"""The steps of `recognition.train_classifier`: rows, folds, fits, calibration, held-out figures, the bundle."""
