"""Your agent, in CleanRL's style: one file, a policy over the open options, its gradient, and nothing hidden."""

import gymnasium
import numpy as np
import torch
from torch import nn

import quantenv  # noqa: F401  registers the environments

env = gymnasium.make("quantenv/DigitsTable-v0", budget=0.45, regret=True)
torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(env.observation_space.shape[0], 64), nn.Tanh(), nn.Linear(64, env.action_space.n))
optimizer = torch.optim.Adam(policy.parameters(), 0.01)
returns: list[float] = []
best = np.inf
for _ in range(20):
    losses = []
    for _ in range(16):  # a batch of episodes, 16 evaluations
        observation, info = env.reset()
        log_probabilities, entropies, terminated = [], [], False
        while not terminated:
            mask = torch.as_tensor(info["action_mask"], dtype=torch.bool)
            logits = policy(torch.as_tensor(observation)).masked_fill(~mask, -1e9)
            chosen = torch.distributions.Categorical(logits=logits)
            action = chosen.sample()
            log_probabilities.append(chosen.log_prob(action))
            entropies.append(chosen.entropy())
            observation, reward, terminated, _, info = env.step(int(action))
        returns.append(reward)
        best = min(best, float(info["regret"]))
        spread = np.std(returns[-64:]) + 1e-8
        advantage = (reward - np.mean(returns[-64:])) / spread
        losses.append(-advantage * torch.stack(log_probabilities).mean() - 0.1 * torch.stack(entropies).mean())
    optimizer.zero_grad()
    torch.stack(losses).mean().backward()
    optimizer.step()
print(f"after {len(returns)} evaluations: {100 * best:.2f} points below the best allocation")
