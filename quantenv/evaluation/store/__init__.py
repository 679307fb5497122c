"""The evaluations that were made, kept by content."""
