"""Benchmarks of quantenv itself, and the recorded results: one file for each question. Not installed."""
