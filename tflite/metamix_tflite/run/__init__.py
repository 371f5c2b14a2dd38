"""Running and timing a .tflite with LiteRT."""
