"""What runs a function: ONNX Runtime, or a handler in Python."""
