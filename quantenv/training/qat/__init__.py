"""What quantization-aware training trains: quantizers with gradients, and the network of one allocation."""
