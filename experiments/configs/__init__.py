"""The options that each command ships with, as YAML: above the dataclasses' defaults, below ``--config``."""
