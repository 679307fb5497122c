"""quantenv: the reinforcement-learning benchmark and toolkit for mixed-precision quantization.

Importing it registers the environment ids with Gymnasium and imports no torch.
"""

from quantenv.env.registration import register_environments

__version__ = "0.1.0"

register_environments()
