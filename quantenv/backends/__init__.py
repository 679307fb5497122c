"""What computes a quantized network: float, exact integers, and integer kernels."""
