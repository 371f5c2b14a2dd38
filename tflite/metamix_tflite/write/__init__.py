"""Writing a folded network as a .tflite."""
