"""What everything stands on: allocations, layer descriptions, channel groups, ties, errors, and files."""
