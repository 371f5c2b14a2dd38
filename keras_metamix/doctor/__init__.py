"""What stands in a model's way before it is trained, and what cost it accuracy afterwards."""
