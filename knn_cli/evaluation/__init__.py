"""Figures from scores: language recognition metrics, bootstrap, duration curve, diarization error. No models."""
