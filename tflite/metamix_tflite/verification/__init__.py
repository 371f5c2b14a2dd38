"""Whether a .tflite is what it was declared to be, and computes what was trained."""
