"""Neural networks and the bundles that hold them: contracts, filter-bank features, checkpoint import, ONNX export."""
