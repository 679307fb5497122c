"""HAQ's DDPG (Wang et al. 2019; Lillicrap et al. 2016): a deterministic actor names bits as numbers.

This is a version of our own, not Stable-Baselines3's DDPG. SB3 stores a transition before the episode's
reward is known, adds Gaussian noise that it clips, and knows no reward baseline; HAQ needs the final reward on
every step, the executed action in place of the proposed one, noise truncated to the interval, and a moving
baseline. Bending SB3 would override `_store_transition`, `_sample_action` and `train`: nearly all of it.

The constants are those of HAQ's published code (`rl_quantize.py`, `lib/rl/ddpg.py`). What HAQ lacks are masks, and with
them its actor runs into a dead end: options above the budget are never executed, so no experience ever contradicts a
critic that expects ever more of ever more bits. The actor therefore follows inverted gradients (Hausknecht and Stone
2016): beyond the open options they turn around, and lead it back.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from agents.base import (
    Log,
    checked_seed,
    counts_evaluations,
    finite_reward,
    in_force,
    problem_size,
    require_in_range,
    vectorize,
)
from agents.checkpoint import load_modules, save_modules
from quantenv.envs.wrappers import ContinuousBits
from quantenv.quantization.optimizers import Adam


@dataclass(frozen=True)
class DDPGConfig:
    """Options of the DDPG agent."""

    hidden: int = 300
    """Units of both hidden layers of actor and critic."""
    actor_learning_rate: float = 1e-4
    """Adam's step size for the actor."""
    critic_learning_rate: float = 1e-3
    """Adam's step size for the critic."""
    tau: float = 0.01
    """Share of the networks that enters their slowly following targets at each update."""
    gamma: float = 1.0
    """Discount."""
    batch_size: int = 64
    """Transitions in an update."""
    replay_episodes: int = 128
    """Episodes that replay holds; older ones are overwritten."""
    warmup_episodes: int = 20
    """Episodes of uniformly random actions before the first update."""
    episodes_per_batch: int = 1
    """Episodes that run side by side between updates."""
    steps_per_update: int = 1
    """Steps of these episodes for each update; the updates are made when they have ended, at least one."""
    noise: float = 0.5
    """Standard deviation of the truncated normal exploration noise right after the warm-up."""
    noise_decay: float = 0.99
    """Factor on the noise for every episode after the warm-up."""
    noise_floor: float = 0.0
    """The noise decays no further. HAQ's decays to 0, and its actor repeats one allocation from then on."""
    baseline_rate: float = 0.5
    """How far the reward baseline moves to the mean of each batch."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "batch_size", "replay_episodes")
        require_in_range(self, 1, math.inf, "episodes_per_batch", "steps_per_update")
        require_in_range(self, 0, math.inf, "actor_learning_rate", "critic_learning_rate", "warmup_episodes", "noise")
        require_in_range(self, 0, math.inf, "noise_floor")
        require_in_range(self, 0, 1, "tau", "gamma", "noise_decay", "baseline_rate")


class Actor(nn.Module):
    """Observation to action."""

    def __init__(self, features: int, dims: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, dims),
        )

    def forward(self, observations: Tensor) -> Tensor:
        """(B, F) -> (B, D) in [0, 1]."""
        return torch.sigmoid(self.net(observations))


class Critic(nn.Module):
    """Observation and action to the return from there on."""

    def __init__(self, features: int, dims: int, hidden: int) -> None:
        super().__init__()
        self.observation = nn.Linear(features, hidden)
        self.action = nn.Linear(dims, hidden)
        self.net = nn.Sequential(nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(B, F), (B, D) -> (B,)."""
        return self.net(self.observation(observations) + self.action(actions)).squeeze(-1)


#: What an agent sees before a decision: the observation (F,), and the lowest and highest open action (2, D).
State = tuple[np.ndarray, np.ndarray]


class Replay:
    """Ring buffer of transitions."""

    def __init__(self, size: int, features: int, dims: int) -> None:
        self.observations = np.zeros((size, features), np.float32)
        self.actions = np.zeros((size, dims), np.float32)
        self.rewards = np.zeros(size, np.float32)
        self.next_observations = np.zeros((size, features), np.float32)
        self.continues = np.zeros(size, np.float32)  # 0 where the episode ended
        self.open = np.zeros((size, 2, dims), np.float32)  # lowest and highest open action
        self.next_open = np.zeros((size, 2, dims), np.float32)
        self.added = 0

    def add(self, state: State, action: np.ndarray, reward: float, following: State, ended: bool) -> None:
        """Stores one transition over the oldest."""
        at = self.added % len(self.rewards)
        (self.observations[at], self.open[at]), self.actions[at], self.rewards[at] = state, action, reward
        (self.next_observations[at], self.next_open[at]), self.continues[at] = following, 1.0 - ended
        self.added += 1

    def sample(self, count: int, generator: np.random.Generator) -> tuple[Tensor, ...]:
        """Draws transitions uniformly: (B, F), (B, 2, D), (B, D), (B,), (B, F), (B, 2, D), (B,)."""
        at = generator.integers(min(self.added, len(self.rewards)), size=count)
        before = (self.observations, self.open, self.actions, self.rewards)
        return tuple(
            torch.as_tensor(field[at]) for field in (*before, self.next_observations, self.next_open, self.continues)
        )


class DDPGAgent:
    """HAQ's DDPG: continuous bits, truncated-normal exploration, the final reward on every step."""

    name: ClassVar[str] = "ddpg"
    config_class: ClassVar[type] = DDPGConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: DDPGConfig | None = None) -> None:
        """See `agents.base.Agent`."""
        self.config = in_force(config, DDPGConfig)
        seed = checked_seed(seed)
        features, n_actions, decisions = problem_size(env)
        self.env = ContinuousBits(env)
        dims = int(np.prod(self.env.action_space.shape or ()))  # D: 1, or 2 for joint decisions
        hidden = self.config.hidden
        with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator
            torch.manual_seed(seed)
            self.actor, self.critic = Actor(features, dims, hidden), Critic(features, dims, hidden)
        self.actor_target, self.critic_target = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_optimizer = Adam(self.actor.parameters(), self.config.actor_learning_rate, fused=True)
        self.critic_optimizer = Adam(self.critic.parameters(), self.config.critic_learning_rate, fused=True)
        self.replay = Replay(self.config.replay_episodes * decisions, features, dims)
        self._generator = np.random.default_rng(seed)
        self._seed = seed
        self._episodes = 0
        self._copies: VectorEnv | None = None
        self._options = self.env.continuous(np.arange(n_actions))  # (A, D)
        self._baseline: float | None = None

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes; after the warm-up, each batch of them is followed by updates."""
        while evaluations:
            count = min(evaluations, self.config.episodes_per_batch)
            steps = self._run_episodes(count)
            evaluations -= count
            if self._episodes > self.config.warmup_episodes:
                for _ in range(max(1, steps // self.config.steps_per_update)):
                    metrics = self._update()
                log(metrics | {"train/noise": self._noise()})

    def _run_episodes(self, count: int) -> int:
        """Plays episodes side by side, puts them into replay and returns their number of steps."""
        if self._copies is None or self._copies.num_envs != count:
            self._copies = vectorize(self.env.env, count)
        observations, info = self._copies.reset(seed=None if self._episodes else self._seed)  # (B, F)
        states, ended = [(observations, self._open(info["action_mask"]))], False
        while not ended:
            actions = self.env.actions(self._explore(observations))
            observations, rewards, terminated, truncated, info = self._copies.step(actions)
            ended = bool((terminated | truncated).all())
            if ended:  # the copies have begun their next episodes already
                observations, info = np.stack(info["final_obs"].tolist()), info["final_info"]
            states.append((observations, self._open(info["action_mask"])))
        self._episodes += count
        # The reward belongs to the executed bits (after masks and projection), so they are what replay holds:
        # HAQ stored the proposed ones, and its critic learned the value of allocations that nobody evaluated.
        for index, executed in enumerate(info["executed_actions"]):  # (T,)
            reward = finite_reward(rewards[index])
            seen = [(observation[index], options[index]) for observation, options in states]
            for step, action in enumerate(self.env.continuous(executed)):  # (D,)
                self.replay.add(seen[step], action, reward, seen[step + 1], step == len(executed) - 1)
        return count * (len(states) - 1)

    def _open(self, masks: np.ndarray) -> np.ndarray:
        """Gives the lowest and the highest open action in each dimension, shape (B, 2, D), for masks (B, A)."""
        masks = masks.astype(bool)[:, :, None]
        lowest = np.where(masks, self._options, np.inf).min(axis=1)
        return np.stack([lowest, np.where(masks, self._options, -np.inf).max(axis=1)], axis=1)

    def _noise(self) -> float:
        since_warmup = max(0, self._episodes - self.config.warmup_episodes)
        return max(self.config.noise_floor, self.config.noise * self.config.noise_decay**since_warmup)

    def _explore(self, observations: np.ndarray) -> np.ndarray:
        """Draws actions (B, D) for (B, F): uniform in the warm-up, then normal around the actor's, in [0, 1]."""
        if self._episodes < self.config.warmup_episodes:
            return self._generator.random((len(observations), self._options.shape[1]), dtype=np.float32)
        mean, noise = self._greedy(observations), self._noise()
        actions = self._generator.normal(mean, noise)
        # Rejection draws the truncated normal exactly; with the mean in [0, 1], half of the draws pass.
        while (outside := (actions < 0) | (actions > 1)).any():
            actions = np.where(outside, self._generator.normal(mean, noise), actions)
        return actions.astype(np.float32)

    def _greedy(self, observations: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.actor(torch.as_tensor(observations)).numpy()

    def _update(self) -> dict[str, float]:
        config = self.config
        batch = self.replay.sample(config.batch_size, self._generator)
        observations, bounds, actions, rewards, following, next_bounds, continues = batch
        mean = rewards.mean().item()
        old = mean if self._baseline is None else self._baseline
        self._baseline = old + config.baseline_rate * (mean - old)
        with torch.no_grad():
            # The environment would execute the nearest open option, so that is what the next state is worth.
            next_actions = self.actor_target(following).clamp(next_bounds[:, 0], next_bounds[:, 1])  # (B, D)
            next_values = self.critic_target(following, next_actions)  # (B,)
            targets = rewards - self._baseline + config.gamma * continues * next_values  # (B,)
        critic_loss = nn.functional.mse_loss(self.critic(observations, actions), targets)
        self.critic_optimizer.zero_grad()
        critic_loss.backward()
        self.critic_optimizer.step()

        proposed = self.actor(observations)  # (B, D)
        at = proposed.detach().requires_grad_()
        values = self.critic(observations, at)  # (B,)
        (slope,) = torch.autograd.grad(values.sum(), at)  # (B, D)
        low, high = bounds[:, 0], bounds[:, 1]  # (B, D)
        slope = slope * torch.where(slope > 0, high - at, at - low).detach()
        self.actor_optimizer.zero_grad()
        proposed.backward(-slope / len(slope))
        self.actor_optimizer.step()
        self._copy_to_targets(config.tau)
        return {
            "train/critic_loss": critic_loss.item(),
            "train/actor_loss": -values.mean().item(),
            "train/baseline": self._baseline,
        }

    @torch.no_grad()
    def _copy_to_targets(self, share: float) -> None:
        for target, source in ((self.actor_target, self.actor), (self.critic_target, self.critic)):
            torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), share)

    def start_episode(self) -> None:
        """Does nothing: the actor has no memory."""

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Rounds the actor's output to an action; one that is not allowed is the environment's to correct."""
        return int(self.env.action(self._greedy(observation[None])[0]))

    def save(self, path: Path) -> None:
        """Writes actor and critic."""
        save_modules(path, self.name, {"actor": self.actor, "critic": self.critic})

    def load(self, path: Path) -> None:
        """Reads actor and critic, targets included; see `agents.base.Agent` for the errors."""
        load_modules(path, self.name, {"actor": self.actor, "critic": self.critic})
        self._copy_to_targets(1.0)
