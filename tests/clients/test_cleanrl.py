"""The loops of CleanRL's ppo.py and dqn.py over `gymnasium.make_vec`, shortened, with their bookkeeping as it is there.

Both are written for Gymnasium's default, NEXT_STEP: the step after the last one of an episode begins the next episode.
"""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from torch import nn, optim
from torch.distributions import Categorical

from tests.clients.plain import ACTIONS, DECISIONS, FEATURES, replay

ID = "quantenv:quantenv/DigitsTable-v0"
COPIES = 4


class Agent(nn.Module):
    def __init__(self):
        super().__init__()
        self.critic = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, 1))
        self.actor = nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.Linear(16, ACTIONS))

    def get_value(self, observations):
        return self.critic(observations)

    def get_action_and_value(self, observations, action=None):
        probs = Categorical(logits=self.actor(observations))
        action = probs.sample() if action is None else action
        return action, probs.log_prob(action), probs.entropy(), self.critic(observations)


class Episodes:
    """Compares every finished episode with a plain loop over the actions that it took."""

    def __init__(self):
        self.count, self._taken, self._waiting = 0, [[] for _ in range(COPIES)], np.zeros(COPIES, dtype=bool)

    def step(self, actions, terminations, infos):
        for copy in np.flatnonzero(~self._waiting):
            self._taken[copy].append(int(actions[copy]))
        for copy in np.flatnonzero(terminations):
            assert infos["episode"]["l"][copy] == len(self._taken[copy]) == DECISIONS
            assert infos["episode"]["r"][copy] == pytest.approx(replay(self._taken[copy])[1])
            self._taken[copy] = []
            self.count += 1
        self._waiting = terminations


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_ppo(mode):
    torch.manual_seed(0)
    steps, iterations, gamma, gae_lambda = 36, 3, 0.99, 0.95
    envs = RecordEpisodeStatistics(gymnasium.make_vec(ID, num_envs=COPIES, vectorization_mode=mode))
    agent, episodes = Agent(), Episodes()
    optimizer = optim.Adam(agent.parameters(), lr=2.5e-3, eps=1e-5)
    obs = torch.zeros((steps, COPIES, FEATURES))
    actions, logprobs, rewards, dones, values = (torch.zeros((steps, COPIES)) for _ in range(5))
    next_obs, _ = envs.reset(seed=1)
    next_obs, next_done = torch.Tensor(next_obs), torch.zeros(COPIES)
    for _ in range(iterations):
        for step in range(steps):
            obs[step], dones[step] = next_obs, next_done
            with torch.no_grad():
                action, logprob, _, value = agent.get_action_and_value(next_obs)
                values[step] = value.flatten()
            actions[step], logprobs[step] = action, logprob
            next_obs, reward, terminations, truncations, infos = envs.step(action.cpu().numpy())
            next_done = np.logical_or(terminations, truncations)
            rewards[step] = torch.tensor(reward).view(-1)
            next_obs, next_done = torch.Tensor(next_obs), torch.Tensor(next_done)
            episodes.step(action, terminations, infos)
        with torch.no_grad():
            next_value = agent.get_value(next_obs).reshape(1, -1)
            advantages, lastgaelam = torch.zeros_like(rewards), 0
            for t in reversed(range(steps)):
                nonterminal = 1.0 - (next_done if t == steps - 1 else dones[t + 1])
                following = next_value if t == steps - 1 else values[t + 1]
                delta = rewards[t] + gamma * following * nonterminal - values[t]
                advantages[t] = lastgaelam = delta + gamma * gae_lambda * nonterminal * lastgaelam
            returns = (advantages + values).reshape(-1)
        for _ in range(2):
            _, newlogprob, entropy, newvalue = agent.get_action_and_value(
                obs.reshape(-1, FEATURES), actions.reshape(-1).long()
            )
            ratio = (newlogprob - logprobs.reshape(-1)).exp()
            gained = advantages.reshape(-1)
            pg_loss = torch.max(-gained * ratio, -gained * torch.clamp(ratio, 0.8, 1.2)).mean()
            v_loss = 0.5 * ((newvalue.view(-1) - returns) ** 2).mean()
            loss = pg_loss - 0.01 * entropy.mean() + 0.5 * v_loss
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
    # 8 decisions, and one step that begins the next episode.
    assert episodes.count == COPIES * iterations * steps // (DECISIONS + 1)
    assert all(torch.isfinite(parameter).all() for parameter in agent.parameters())


def test_dqn():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    envs = RecordEpisodeStatistics(gymnasium.make_vec(ID, num_envs=COPIES))
    q_network, episodes = nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, ACTIONS)), Episodes()
    optimizer = optim.Adam(q_network.parameters(), lr=2.5e-3)
    replayed, steps = [], 90
    obs, _ = envs.reset(seed=1)
    autoreset = np.zeros(COPIES, dtype=bool)
    for step in range(steps):
        actions = q_network(torch.Tensor(obs)).argmax(dim=1).numpy()
        explore = rng.random(COPIES) < 0.5
        actions[explore] = envs.action_space.sample()[explore]
        next_obs, rewards, terminations, truncations, infos = envs.step(actions)
        episodes.step(actions, terminations, infos)
        replayed += [
            (obs[copy], next_obs[copy], actions[copy], rewards[copy], terminations[copy])
            for copy in np.flatnonzero(~autoreset)  # a step that begins an episode is no transition
        ]
        autoreset, obs = terminations | truncations, next_obs
        if step > 20:
            rows = rng.integers(len(replayed), size=32)
            data = [torch.as_tensor(np.stack([replayed[row][part] for row in rows])) for part in range(5)]
            with torch.no_grad():
                target = q_network(data[1]).max(dim=1).values
                td_target = data[3].float() + 0.99 * target * (1 - data[4].float())
            loss = nn.functional.mse_loss(td_target, q_network(data[0]).gather(1, data[2][:, None]).squeeze())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert episodes.count == COPIES * steps // (DECISIONS + 1)
    assert len(replayed) == DECISIONS * episodes.count
    assert sum(float(reward) != 0 for _, _, _, reward, _ in replayed) <= episodes.count
