"""What on-policy agents from Stable-Baselines3 and sb3-contrib need to act here; the algorithms are used as they come.

Around them are the things that they do not do: run whole episodes side by side, stop after an exact number of
evaluations, learn from the executed actions where the environment corrects them, and leave the global random states
alone.
"""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecEnv
from torch.distributions import Distribution

from agents.base import Log, checked_seed, counts_evaluations, finite_reward, in_force, problem_size, vectorize
from agents.checkpoint import load_modules, save_modules
from quantenv.core.errors import QuantenvError


class OnPolicyAgent(ABC):
    """An agent of SB3 that learns from rollouts of whole episodes."""

    name: ClassVar[str]
    config_class: ClassVar[type]
    masking: ClassVar[bool] = False
    """Whether the algorithm takes masks, where the constraint is one."""

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`."""
        self.env = env
        self.config: Any = in_force(config, self.config_class)
        seed = checked_seed(seed)
        _, _, self._length = problem_size(env)
        self._seed = seed
        self._episodes = 0
        self.masked = self.masking and env.get_wrapper_attr("constraint") == "mask"
        self._randomness = PrivateRandomness()
        self.start_episode()
        with self._randomness.active():
            self.model = self._build(LockstepVecEnv(vectorize(env, self.config.episodes_per_update), seed), seed)

    @abstractmethod
    def _build(self, envs: VecEnv, seed: int) -> Any:
        """Makes SB3's algorithm, whose rollouts take one step in every copy for each decision of an episode."""

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Acts for this many episodes; a last rollout that they do not fill is not learned from."""
        self.model.set_logger(Logger(folder=None, output_formats=[Forward(log)]))
        rollouts, rest = divmod(evaluations, self.config.episodes_per_update)
        with self._randomness.active():
            if rollouts:
                steps = rollouts * self.config.episodes_per_update * self._length
                self.model.learn(
                    steps, callback=_Executed(self), log_interval=1, reset_num_timesteps=not self._episodes
                )
            self.model.logger.dump()  # of the last update, which no further rollout follows
            self._episodes += evaluations - rest
            if rest:
                self._play(rest)

    def _play(self, count: int) -> None:
        """Samples episodes from the policy."""
        envs = LockstepVecEnv(vectorize(self.env, count), None if self._episodes else self._seed)
        observations: Any = envs.reset()  # (B, F)
        state: Any = None
        for step in range(self._length):
            masks: dict[str, Any] = {"action_masks": envs.action_masks()} if self.masked else {}
            starts = {"episode_start": np.full(count, step == 0)}
            actions, state = self.model.predict(observations, state, **starts, **masks)
            observations, rewards, _, _ = envs.step(actions)
            for reward in rewards:
                finite_reward(reward)
        self._episodes += count

    def start_episode(self) -> None:
        """Forgets what a recurrent policy remembers."""
        self._state: Any = None

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Chooses the most probable action, among the allowed ones where the algorithm takes masks."""
        masks: dict[str, Any] = {"action_masks": np.asarray(action_mask, dtype=bool)} if self.masked else {}
        action, self._state = self.model.predict(
            observation, self._state, episode_start=np.array([self._state is None]), deterministic=True, **masks
        )
        return int(action)

    def save(self, path: Path) -> None:
        """Writes the policy's weights (SB3's own archive holds pickled objects, which loading would run)."""
        save_modules(path, self.name, {"policy": self.model.policy})

    def load(self, path: Path) -> None:
        """Reads the policy's weights; see `agents.base.Agent` for the errors."""
        load_modules(path, self.name, {"policy": self.model.policy})

    def log_probabilities(self, buffer: Any, steps: np.ndarray, copies: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Gives the log-probabilities of other actions than those in the rollout, under the policy that acted.

        Args:
            buffer: SB3's rollout buffer, arrays (T, B, ...).
            steps: Rows to look at, int64 (S,).
            copies: Columns to look at, int64 (S,).
            actions: What was executed there, int64 (S,).
        """
        masks = {"action_masks": buffer.action_masks[steps, copies]} if self.masked else {}
        with torch.no_grad():
            _, log_probabilities, _ = self.model.policy.evaluate_actions(
                torch.as_tensor(buffer.observations[steps, copies]), torch.as_tensor(actions), **masks
            )
        return log_probabilities.numpy()


class LockstepVecEnv(VecEnv):
    """SB3's interface to copies of an environment in lock-step."""

    def __init__(self, envs: VectorEnv, seed: int | None) -> None:
        """Wraps copies.

        Args:
            envs: What `agents.base.vectorize` made.
            seed: Of their first reset.
        """
        self._envs = envs
        self._first_seed = seed
        self._masks = np.zeros((0, 0), dtype=np.int8)
        super().__init__(envs.num_envs, envs.single_observation_space, envs.single_action_space)

    def reset(self) -> np.ndarray:
        """Begins an episode in every copy; observations float32 (B, F)."""
        observations, infos = self._envs.reset(seed=self._first_seed)
        self._first_seed = None
        self._masks = infos["action_mask"]
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the actions, int64 (B,), for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Takes a decision in every copy; the infos of the last one hold what was executed, int64 (T,)."""
        observations, rewards, terminated, _, infos = self._envs.step(self._actions)
        self._masks = infos["action_mask"]
        answers: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        if terminated.any():
            executed = infos["final_info"]["executed_actions"]
            for index, answer in enumerate(answers):
                answer["terminal_observation"] = infos["final_obs"][index]
                answer["executed_actions"] = executed[index]
        return observations, rewards.astype(np.float32), terminated, answers

    def action_masks(self) -> np.ndarray:
        """Returns the open options of the decision at hand, bool (B, A)."""
        return self._masks.astype(bool)

    def env_method(self, method_name: str, *method_args: Any, indices: Any = None, **method_kwargs: Any) -> list[Any]:
        """Answers MaskablePPO's question for the masks, the only method that is asked for."""
        if method_name != "action_masks":
            raise QuantenvError(f"Copies in lock-step have no method {method_name!r}: only action_masks.")
        return list(self.action_masks())

    def has_attr(self, attr_name: str) -> bool:
        """Whether the copies have an attribute: MaskablePPO asks for `action_masks`."""
        return attr_name == "action_masks"

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Returns an attribute of every copy; SB3 asks for `render_mode`."""
        return [getattr(self._envs, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Raises QuantenvError: the copies share everything."""
        raise QuantenvError(f"Copies in lock-step share everything: {attr_name!r} of one of them cannot be set.")

    def env_is_wrapped(self, wrapper_class: type, indices: Any = None) -> list[bool]:
        """Says that no copy is wrapped."""
        return [False] * self.num_envs

    def seed(self, seed: int | None = None) -> Sequence[None]:
        """Leaves the seed of the first reset as it is: the environment draws nothing at random."""
        return [None] * self.num_envs

    def close(self) -> None:
        """Nothing is open."""


class UpdateCallback(BaseCallback):
    """Checks rewards, and writes an update's metrics where it was made.

    SB3 writes them when the next rollout has ended, an update too late, and the last one's never.
    """

    def _on_rollout_start(self) -> None:
        self.logger.dump()

    def _on_step(self) -> bool:
        for reward in self.locals["rewards"]:
            finite_reward(reward)
        return True


class _Executed(UpdateCallback):
    """Puts the executed actions into each rollout."""

    def __init__(self, agent: OnPolicyAgent) -> None:
        super().__init__()
        self.agent = agent
        self.executed = np.zeros((0, 0), dtype=np.int64)

    def _on_step(self) -> bool:
        super()._on_step()
        if self.locals["dones"].all():
            self.executed = np.stack([info["executed_actions"] for info in self.locals["infos"]], axis=1)  # (T, B)
        return True

    def _on_rollout_end(self) -> None:
        """Replaces actions that were not executed, with their log-probabilities: the reward is not theirs."""
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        steps, copies = np.nonzero(self.executed != buffer.actions[..., 0])
        if len(steps):
            actions = self.executed[steps, copies]
            buffer.actions[steps, copies, 0] = actions
            buffer.log_probs[steps, copies] = self.agent.log_probabilities(buffer, steps, copies, actions)


class Forward(KVWriter):
    """Hands on SB3's training metrics; those of rollouts and time are the run's to measure."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Hands on those that are training metrics."""
        # The explained variance is not defined where all returns are equal.
        metrics = {
            key: float(value) for key, value in key_values.items() if key.startswith("train/") and math.isfinite(value)
        }
        if metrics:
            self.log(metrics)

    def close(self) -> None:
        """Nothing is open."""


class PrivateRandomness:
    """SB3 seeds and draws from the global generators: here they are lent to it and put back.

    Meanwhile distributions take their arguments unchecked: SB3's policies make many small ones, and a policy that has
    become NaN is noticed all the same, when it is sampled.
    """

    def __init__(self) -> None:
        self._inside = _global_states()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Swaps the agent's states in for the duration of the block."""
        outside, checked = _global_states(), Distribution._validate_args
        _set_global_states(self._inside)
        Distribution.set_default_validate_args(False)
        try:
            yield
        finally:
            self._inside = _global_states()
            _set_global_states(outside)
            Distribution.set_default_validate_args(checked)


def _global_states() -> tuple[Any, Any, torch.Tensor]:
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def _set_global_states(states: tuple[Any, Any, torch.Tensor]) -> None:
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])
