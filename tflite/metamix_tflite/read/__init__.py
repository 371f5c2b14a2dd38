"""Reading a .tflite, which nothing vouches for, into Python."""
