"""Encoders: waveforms to hidden layers. One module per architecture."""
