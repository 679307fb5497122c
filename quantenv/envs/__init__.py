"""The Gymnasium environment: `environment.QuantizationEnv`, its parts, wrappers and registered ids.

This module imports nothing, so that `import quantenv` can register the ids without importing torch.
"""
