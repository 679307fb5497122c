"""Data splits: tensors, the user's datasets, and image files."""
