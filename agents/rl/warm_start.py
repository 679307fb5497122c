"""Learners that begin where the additive proxy ends: cloned from its exact solution before their first evaluation.

The solution is the ILP's (`agents.search.ilp`), from sensitivities that were measured at a cost of their own. Plain
learners do not have them, so these are agents of other names, and what the measuring cost is said in evaluations
(`equivalent_evaluations`, and the metric ``train/sensitivity_evaluations``).

The policy is trained to give the solution's option most of the probability at every decision, and the rest evenly to
the other open options, in episodes that stray from the solution as the policy will: it then explores the solution's
neighbourhood, and learns on as the plain agent does. Those episodes stop before their last decision, so that nothing
is evaluated.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from agents.base import Log, counts_evaluations, require_in_range, vectorize
from agents.rl.ppo import PPOAgent, PPOConfig
from agents.rl.reinforce import ReinforceAgent, ReinforceConfig
from agents.search.choices import Choices
from agents.search.ilp import solve
from agents.search.ilp_agents import proxy_knapsack
from agents.search.problem import Problem
from agents.search.proxy import measuring_cost
from quantenv.envs.environment import QuantizationEnv
from quantenv.quantization.optimizers import Adam

#: Adam's step size while cloning.
LEARNING_RATE = 3e-3

#: Log-probabilities (B, T, A) of a policy for observations (B, T, F) and masks, bool (B, T, A).
LogProbabilities = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class CloningConfig:
    """Options of the warm start."""

    sensitivity: str = ""
    """Kind of sensitivity that measures the proxy's harm; empty means the default of `quantenv.sensitivity.measure`."""
    confidence: float = 0.7
    """Probability that the cloned policy gives to the solution's option; the other open options share the rest."""
    cloning_episodes: int = 32
    """Episodes to clone from; none is evaluated."""
    cloning_steps: int = 150
    """Gradient steps on them."""

    def __post_init__(self) -> None:
        require_in_range(self, 0, 1, "confidence")
        require_in_range(self, 1, math.inf, "cloning_episodes")
        require_in_range(self, 0, math.inf, "cloning_steps")


@dataclass(frozen=True)
class ReinforceWarmConfig(CloningConfig, ReinforceConfig):
    """Options of REINFORCE from a warm start."""

    def __post_init__(self) -> None:
        CloningConfig.__post_init__(self)
        ReinforceConfig.__post_init__(self)


@dataclass(frozen=True)
class PPOWarmConfig(CloningConfig, PPOConfig):
    """Options of PPO from a warm start."""

    def __post_init__(self) -> None:
        CloningConfig.__post_init__(self)
        PPOConfig.__post_init__(self)


class ReinforceWarmAgent(ReinforceAgent):
    """REINFORCE, its policy first cloned from the additive proxy's exact solution."""

    name: ClassVar[str] = "reinforce-warm"
    config_class: ClassVar[type] = ReinforceWarmConfig
    config: ReinforceWarmConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: ReinforceWarmConfig | None = None) -> None:
        """See `agents.base.Agent`. Sensitivities are measured when it begins to learn, not here."""
        super().__init__(env, seed, config or ReinforceWarmConfig())
        self._warm_start = WarmStart(env, seed, self.config)

    @property
    def equivalent_evaluations(self) -> float:
        """What the sensitivities cost to measure, in evaluations."""
        return self._warm_start.cost

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Clones the solution before the first evaluation, then learns as REINFORCE."""
        self._warm_start.clone_once(self._log_probabilities, self.policy.parameters(), log)
        super().learn(evaluations, log)

    def _log_probabilities(self, observations: Tensor, masks: Tensor) -> Tensor:
        return torch.log_softmax(self.policy(observations, masks)[0], dim=-1)

    def load(self, path: Path) -> None:
        """Reads the policy's weights, which are not cloned over; see `agents.base.Agent` for the errors."""
        super().load(path)
        self._warm_start.done = True


class PPOWarmAgent(PPOAgent):
    """PPO, its policy first cloned from the additive proxy's exact solution."""

    name: ClassVar[str] = "ppo-warm"
    config_class: ClassVar[type] = PPOWarmConfig

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: PPOWarmConfig | None = None) -> None:
        """See `agents.base.Agent`. Sensitivities are measured when it begins to learn, not here."""
        super().__init__(env, seed, config)
        self._warm_start = WarmStart(env, seed, self.config)

    @property
    def equivalent_evaluations(self) -> float:
        """What the sensitivities cost to measure, in evaluations."""
        return self._warm_start.cost

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Clones the solution before the first evaluation, then learns as PPO."""
        self._warm_start.clone_once(self._log_probabilities, self.model.policy.parameters(), log)
        super().learn(evaluations, log)

    def _log_probabilities(self, observations: Tensor, masks: Tensor) -> Tensor:
        flat, open_options = observations.flatten(0, 1), masks.flatten(0, 1)  # (B * T, F), (B * T, A)
        given = {"action_masks": open_options.numpy()} if self.masked else {}
        logits = self.model.policy.get_distribution(flat, **given).distribution.logits
        return torch.log_softmax(logits, dim=-1).view(masks.shape)

    def load(self, path: Path) -> None:
        """Reads the policy's weights, which are not cloned over; see `agents.base.Agent` for the errors."""
        super().load(path)
        self._warm_start.done = True


class WarmStart:
    """Clones the additive proxy's exact solution into a policy, once."""

    def __init__(self, env: gymnasium.Env, seed: int, config: CloningConfig) -> None:
        """Measures nothing yet.

        Args:
            env: A QuantizationEnv, wrapped or not.
            seed: Fixes how the episodes stray.
            config: Options.
        """
        self.done = False
        """Whether the policy holds the solution, or what was loaded."""
        self.cost = 0.0
        """What measuring the sensitivities costs, in evaluations."""
        self._env = env
        self._config = config
        self._generator = np.random.default_rng(seed)

    def clone_once(self, policy: LogProbabilities, parameters: Iterable[nn.Parameter], log: Log) -> None:
        """Clones the solution, unless that was done before.

        Args:
            policy: The policy.
            parameters: What of it is trained.
            log: Receives the cross-entropy at the end and the cost of the sensitivities.

        Raises:
            InfeasibleBudgetError: If no allocation meets the budgets.
            QuantenvError: If the sensitivity is unknown or cannot be measured here.
        """
        if self.done:
            return
        self.done = True
        observations, masks, targets = (torch.as_tensor(part) for part in self.demonstrations())
        optimizer = Adam(list(parameters), LEARNING_RATE, fused=True)
        loss = torch.zeros(())
        for _ in range(self._config.cloning_steps):
            log_probabilities = policy(observations, masks).clamp(min=-1e4)  # closed options: 0 times finite
            loss = -(targets * log_probabilities).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        log({"train/cloning_loss": loss.item(), "train/sensitivity_evaluations": self.cost})

    def demonstrations(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Plays episodes around the solution up to their last decision.

        Returns:
            Observations float32 (B, T, F), masks bool (B, T, A), and the probabilities to clone, float32 (B, T, A).
        """
        solution = self._solution()  # (T,)
        inner: QuantizationEnv = self._env.unwrapped  # type: ignore[assignment]
        copies = vectorize(self._env, self._config.cloning_episodes)
        seen, masks, targets = [], [], []
        observation, infos = copies.reset()
        for decision, wanted in enumerate(solution.tolist()):
            mask = infos["action_mask"].astype(bool)  # (B, A)
            best = np.array([inner.walk.nearest(wanted, each) for each in mask])  # (B,)
            seen.append(observation)
            masks.append(mask)
            targets.append(self._target(mask, best))
            if decision < len(solution) - 1:
                drawn = np.where(mask, self._generator.random(mask.shape), -1.0).argmax(axis=1)
                strays = self._generator.random(len(mask)) > self._config.confidence
                strays[0] = False  # the first episode is the solution's own
                observation, _, _, _, infos = copies.step(np.where(strays, drawn, best))
        return np.stack(seen, axis=1), np.stack(masks, axis=1), np.stack(targets, axis=1)

    def _target(self, mask: np.ndarray, best: np.ndarray) -> np.ndarray:
        """Gives `confidence` to the best option and the rest to the other open ones, float32 (B, A)."""
        others = mask.copy()
        others[np.arange(len(best)), best] = False
        count = others.sum(axis=1, keepdims=True)
        target = others * ((1 - self._config.confidence) / np.maximum(count, 1))
        target[np.arange(len(best)), best] = np.where(count[:, 0], self._config.confidence, 1.0)
        return target.astype(np.float32)

    def _solution(self) -> np.ndarray:
        """Solves the proxy: one action for each decision, int64 (T,)."""
        choices = Choices(Problem(self._env))
        answer = solve(proxy_knapsack(choices, self._env, self._config.sensitivity))
        self.cost = measuring_cost(self._env, self._config.sensitivity or None)
        return choices.actions(answer.options[None])[0]
