"""REINFORCE with an LSTM over the episode (Williams 1992; Zoph and Le 2017 write networks with such an LSTM).

One episode visits the network's layers in order, and the LSTM carries what was decided for the earlier ones. The only
reward comes at the end, so every decision of an episode shares its return. Four things make a few hundred evaluations
enough:

* The head starts at zero: the first policy is uniform over the allowed actions, which is random search.
* The LSTM starts with inputs strong enough that it tells the layers apart from the first update on.
* The baseline is learned: what the decisions so far let expect of the episode. Returns are normalised by the latest
  episodes', so that neither the level nor the scale of the reward matters.
* A batch serves several gradient steps, with PPO's clipped ratio from the second one on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn import functional as F

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
from quantenv.quantization.optimizers import Adam

#: Hidden and cell state of the LSTM, each (layers, B, H).
State = tuple[Tensor, Tensor]

#: Logit of a forbidden action: its probability is exactly 0 in float32, yet log-probabilities and gradients
#: stay finite, as they would not with -inf (Huang and Ontanon 2022, "invalid action masking").
FORBIDDEN = -1e9

#: Standard deviation of the gates' initial response to inputs of unit mean square. At torch's default, which is far
#: lower, the outputs of a second layer of 300 units differed by 0.005 from one decision to the next, and by 0.07 here.
INPUT_GAIN = 2.0


@dataclass(frozen=True)
class ReinforceConfig:
    """Options of the REINFORCE agent."""

    hidden: int = 300
    """Units of each LSTM layer."""
    layers: int = 2
    """LSTM layers."""
    learning_rate: float = 2e-3
    """Adam's step size."""
    episodes_per_update: int = 16
    """Episodes whose gradients are averaged in one update."""
    updates_per_batch: int = 4
    """Gradient steps on a batch; 1 is plain REINFORCE, too slow for a few hundred evaluations."""
    clip_range: float = 0.2
    """How far a probability ratio may move in the further steps on a batch before it is clipped."""
    entropy_bonus: float = 0.2
    """Weight of the policy's entropy (nats per decision). Large: at 0.03 the policy settles on the first good bits."""
    baseline_weight: float = 0.5
    """Weight of the baseline's squared error."""
    normalised_episodes: int = 64
    """Latest episodes whose returns fix the mean and spread by which returns are normalised."""
    max_gradient_norm: float = 1.0
    """Gradients are scaled down to this Euclidean norm."""

    def __post_init__(self) -> None:
        require_in_range(self, 1, math.inf, "hidden", "layers", "episodes_per_update")
        require_in_range(self, 1, math.inf, "updates_per_batch", "normalised_episodes")
        require_in_range(self, 0, math.inf, "learning_rate", "clip_range", "entropy_bonus", "baseline_weight")
        require_in_range(self, 0, math.inf, "max_gradient_norm")


@dataclass(frozen=True)
class Episodes:
    """Finished episodes: what was seen, and the actions that were executed."""

    observations: np.ndarray  # float32 (B, T, F)
    masks: np.ndarray  # bool (B, T, A)
    actions: np.ndarray  # int64 (B, T)
    totals: np.ndarray  # float64 (B,), the returns: gamma is 1


class Policy(nn.Module):
    """LSTM over the decisions of an episode, with masked logits and a baseline."""

    def __init__(self, features: int, actions: int, config: ReinforceConfig) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, config.hidden, config.layers, batch_first=True)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("weight_ih"):
                nn.init.normal_(parameter, std=INPUT_GAIN / parameter.shape[1] ** 0.5)
            elif name.startswith("weight_hh"):
                for gate in parameter.chunk(4):
                    nn.init.orthogonal_(gate)
            else:
                nn.init.zeros_(parameter)
        self.head = nn.Linear(config.hidden, actions)
        self.baseline = nn.Linear(config.hidden, 1)
        for parameter in (*self.head.parameters(), *self.baseline.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, observations: Tensor, masks: Tensor, state: State | None = None) -> tuple[Tensor, Tensor, State]:
        """Gives logits (B, L, A) and baseline (B, L) of a stretch of decisions, and the LSTM's state after it.

        Args:
            observations: Shape (B, L, F).
            masks: Bool, shape (B, L, A): allowed actions.
            state: The LSTM's state before the stretch; None at the start of an episode.
        """
        hidden, state = self.lstm(observations, state)  # (B, L, H)
        logits = self.head(hidden).masked_fill(~masks, FORBIDDEN)  # (B, L, A)
        return logits, self.baseline(hidden).squeeze(-1), state


class ReinforceAgent:
    """REINFORCE with a 2-layer LSTM over the layers, a learned baseline and an entropy bonus."""

    name: ClassVar[str] = "reinforce"
    config_class: ClassVar[type] = ReinforceConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: ReinforceConfig | None = None) -> None:
        """See `agents.base.Agent`."""
        self.env = env
        self.config = in_force(config, ReinforceConfig)
        seed = checked_seed(seed)
        features, actions, self._decisions = problem_size(env)
        with torch.random.fork_rng(devices=[]):  # initial weights come from torch's global generator
            torch.manual_seed(seed)
            self.policy = Policy(features, actions, self.config)
        self.optimizer = Adam(self.policy.parameters(), lr=self.config.learning_rate, fused=True)
        self._generator = np.random.default_rng(seed)
        self._seed = seed
        self._episodes = 0
        self._copies: VectorEnv | None = None
        self._batch: list[Episodes] = []
        self._totals = np.zeros(0)  # returns of the latest episodes
        self._state: State | None = None  # of the LSTM, within an episode that `act` plays

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes, and updates whenever a batch of them is complete."""
        while evaluations:
            held = sum(len(episodes.totals) for episodes in self._batch)
            self._batch.append(self._run(min(evaluations, self.config.episodes_per_update - held)))
            count = len(self._batch[-1].totals)
            evaluations -= count
            if held + count == self.config.episodes_per_update:
                log(self._update(self._batch))
                self._batch = []

    def _run(self, count: int) -> Episodes:
        """Plays episodes side by side: the LSTM answers, and the allocations are evaluated, all at once."""
        if self._copies is None or self._copies.num_envs != count:
            self._copies = vectorize(self.env, count)
        observations, masks = [], []
        observation, infos = self._copies.reset(seed=None if self._episodes else self._seed)  # (B, F)
        totals = np.zeros(count)
        state = None
        for _ in range(self._decisions):
            mask = infos["action_mask"].astype(bool)  # (B, A)
            observations.append(observation)
            masks.append(mask)
            logits, state = self._logits(observation, mask, state)
            # Adding Gumbel noise to logits and taking the largest samples from their softmax.
            actions = np.argmax(logits + self._generator.gumbel(size=logits.shape), axis=-1)  # (B,)
            observation, rewards, _, _, infos = self._copies.step(actions)
            totals += rewards
        self._episodes += count
        for total in totals:
            finite_reward(total)
        # Under `project` the finished allocation is changed, and the reward is that of the changed one:
        # learning from the actions that were proposed would credit the wrong bits (HAQ's replay did).
        executed = infos["final_info"]["executed_actions"]  # (B, T)
        allowed = np.stack(masks, axis=1)  # (B, T, A)
        np.put_along_axis(allowed, executed[..., None], True, axis=-1)  # it may have been closed to a proposal
        return Episodes(np.stack(observations, axis=1), allowed, executed, totals)

    def _update(self, batch: Sequence[Episodes]) -> Mapping[str, float]:
        config = self.config
        episodes = Episodes(*(np.concatenate(parts) for parts in zip(*map(astuple, batch), strict=True)))
        self._totals = np.concatenate([self._totals, episodes.totals])[-config.normalised_episodes :]
        scaled = (episodes.totals - self._totals.mean()) / (self._totals.std() + 1e-8)
        returns = torch.as_tensor(scaled, dtype=torch.float32)[:, None]  # (B, 1): gamma is 1
        with torch.no_grad():
            before, _, baseline = self._evaluate(episodes)  # (B, T) each
            advantages = returns - baseline
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(config.updates_per_batch):
            # Whole episodes run through the LSTM once more in one call: cheaper than a graph for every step.
            log_probs, entropy, baseline = self._evaluate(episodes)  # (B, T) each
            # In the first step every ratio is 1, and the gradient is REINFORCE's; in the further ones the ratio weighs
            # the samples of an older policy, clipped as in PPO (Schulman et al. 2017, eq. 7).
            ratio = (log_probs - before).exp()
            clipped = ratio.clamp(1 - config.clip_range, 1 + config.clip_range)
            policy_loss = -torch.min(advantages * ratio, advantages * clipped).mean()
            baseline_loss = (returns - baseline).square().mean()
            loss = policy_loss + config.baseline_weight * baseline_loss - config.entropy_bonus * entropy.mean()
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), config.max_gradient_norm)
            self.optimizer.step()
        return {
            "train/policy_loss": policy_loss.item(),
            "train/baseline_loss": baseline_loss.item(),
            "train/entropy": entropy.mean().item(),
            "train/gradient_norm": norm.item(),
        }

    def _evaluate(self, episodes: Episodes) -> tuple[Tensor, Tensor, Tensor]:
        """Gives executed actions' log-probabilities, the policy's entropy and the baseline, each (B, T)."""
        observations, masks = torch.as_tensor(episodes.observations), torch.as_tensor(episodes.masks)
        actions = torch.as_tensor(episodes.actions)  # (B, T)
        logits, baseline, _ = self.policy(observations, masks)
        log_softmax = F.log_softmax(logits, dim=-1)  # (B, T, A)
        log_probs = log_softmax.gather(-1, actions[..., None]).squeeze(-1)
        return log_probs, -(log_softmax.exp() * log_softmax).sum(-1), baseline

    def _logits(self, observations: np.ndarray, masks: np.ndarray, state: State | None) -> tuple[np.ndarray, State]:
        """Runs the LSTM one decision further from (B, F) and (B, A); gives the logits (B, A) and its state."""
        with torch.inference_mode():
            logits, _, state = self.policy(
                torch.as_tensor(observations)[:, None], torch.as_tensor(masks)[:, None], state
            )
        return logits[:, 0].numpy(), state

    def start_episode(self) -> None:
        """Empties the LSTM's state."""
        self._state = None

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Chooses the most probable allowed action."""
        mask = np.asarray(action_mask, dtype=bool)
        logits, self._state = self._logits(observation[None], mask[None], self._state)
        return int(np.argmax(logits[0]))

    def save(self, path: Path) -> None:
        """Writes the policy's weights."""
        save_modules(path, self.name, {"policy": self.policy})

    def load(self, path: Path) -> None:
        """Reads the policy's weights; see `agents.base.Agent` for the errors."""
        load_modules(path, self.name, {"policy": self.policy})
