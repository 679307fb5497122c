"""The environment in 20 lines: random search, at table speed."""

import gymnasium
import numpy as np

import quantenv  # registers the environments; loads no torch

env = gymnasium.make("quantenv/DigitsTable-v0", metric="size", budget=0.4, regret=True)
rng = np.random.default_rng(0)
best = np.inf
for _ in range(200):  # one episode is one allocation
    observation, info = env.reset()
    terminated = False
    while not terminated:
        action = int(rng.choice(np.flatnonzero(info["action_mask"])))
        observation, reward, terminated, truncated, info = env.step(action)
    best = min(best, info["regret"])
print(f"{100 * best:.2f} points below the best of all {4**8:,} allocations")
assert quantenv.__version__
