"""Neural networks and the folders that hold them: contracts, features, bundles, ONNX export."""
