"""Tables of every allocation, and what is looked up in them."""
