"""Rewritings of the traced network that change no outputs."""
