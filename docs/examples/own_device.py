"""Your device: which bits it has, and what they cost."""

from pathlib import Path
from tempfile import TemporaryDirectory

import gymnasium

import quantenv  # noqa: F401  registers the environments

DEVICE = """
name: my_accelerator
description: Weights of 4 or 8 bits beside activations of 8; bound by memory at 2 GB/s.
weight_bits: {value: [4, 8], source: "Data sheet, page 12"}
activation_bits: {value: [8], source: "Data sheet, page 12"}
latency:
  model: roofline
  bytes_per_second: {value: 2.0e+9, source: "Data sheet, page 3"}
  macs_per_second: {value: 3.2e+10, source: "Measured on ResNet-20 at 8 bits"}
  native_weight_bits: {value: [4, 8], source: "Data sheet, page 12"}
  native_activation_bits: {value: [8], source: "Data sheet, page 12"}
"""

with TemporaryDirectory() as folder:
    path = Path(folder) / "my_accelerator.yaml"
    path.write_text(DEVICE)
    env = gymnasium.make("quantenv/DigitsTable-v0", device=str(path), metric="latency", budget=0.9)
    _, info = env.reset()
print(f"open options of the first layer (2, 4, 6 and 8 bits): {info['action_mask']}")
print(f"budget: {1e6 * info['budget_latency'].item():.2f} microseconds")
