"""The operators of a file: how the layers of a folded network are written."""
