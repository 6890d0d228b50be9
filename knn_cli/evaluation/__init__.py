"""Metrics from scores: language recognition, verification, diarization error, bootstrap, duration curve. No models."""
