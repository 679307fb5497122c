"""Evaluations by several workers, with the same numbers to the bit."""
