"""A search and its run folder: episodes, what is kept of them, and the final comparison."""
