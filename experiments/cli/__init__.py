"""The console script `quantenv`: one file for each command."""
