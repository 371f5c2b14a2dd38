"""What keeps a model from being quantized, and what costs it accuracy afterwards."""
