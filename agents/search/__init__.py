"""What engineers use instead of RL: each baseline is one file and an agent like any other; `base` says how they run."""
