"""Encoders: waveforms to hidden layers."""
