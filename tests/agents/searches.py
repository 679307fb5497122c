"""Searches on the synthetic additive task, recorded episode by episode."""

import itertools
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv, VectorWrapper

from agents import make_agent
from agents.base import Agent, vectorize
from quantenv.envs.environment import QuantizationEnv
from tests.synthetic import AdditiveEvaluator, synthetic_layers

#: The main learners, and all of them.
MAIN = ("ddpg", "ppo", "reinforce")
LEARNERS = (*MAIN, "a2c", "ppo-warm", "recurrent-ppo", "reinforce-warm", "sac", "td3", "trpo")

#: Sizes that keep tests quick where learning is not what is tested.
SMALL: dict[str, dict[str, Any]] = {
    "a2c": {"hidden": 8},
    "ddpg": {"hidden": 16, "warmup_episodes": 3, "batch_size": 8},
    "ppo": {"hidden": 8, "episodes_per_update": 4, "episodes_per_minibatch": 2, "epochs": 2},
    "ppo-warm": {"hidden": 8, "episodes_per_update": 4, "episodes_per_minibatch": 2, "epochs": 2, "cloning_steps": 5},
    "recurrent-ppo": {"hidden": 8, "episodes_per_update": 4, "epochs": 2},
    "reinforce": {"hidden": 8, "episodes_per_update": 4},
    "reinforce-warm": {"hidden": 8, "episodes_per_update": 4, "cloning_steps": 5},
    "sac": {"hidden": 8, "episodes_per_batch": 8, "warmup_episodes": 3, "batch_size": 8},
    "td3": {"hidden": 8, "warmup_episodes": 3, "batch_size": 8},
    "trpo": {"hidden": 8, "episodes_per_update": 4},
}


class Recorder(gymnasium.Wrapper):
    """Keeps the reward, the bits and the steps of every finished episode."""

    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.rewards: list[float] = []
        self.bits: list[list[list[int]]] = []
        self.taken: list[list[int]] = []
        self.masks: list[np.ndarray] = []
        self.infos: list[dict[str, Any]] = []

    def reset(self, **kwargs: Any) -> Any:
        self._actions: list[int] = []
        observation, info = self.env.reset(**kwargs)
        self._mask = info["action_mask"]
        return observation, info

    def step(self, action: Any) -> Any:
        self._actions.append(int(action))
        self.masks.append(self._mask)
        result = self.env.step(action)
        info = result[4]
        self._mask = info["action_mask"]
        if result[2]:
            self.rewards.append(float(result[1]))
            self.bits.append(info["bits"].tolist())
            self.taken.append(self._actions)
            self.infos.append(info)
        return result

    def vectorize(self, num_envs: int) -> "RecordedCopies":
        return RecordedCopies(vectorize(self.env, num_envs), self)


class RecordedCopies(VectorWrapper):
    """Keeps the same of every copy, in their order."""

    def __init__(self, env: VectorEnv, recorder: Recorder) -> None:
        super().__init__(env)
        self.recorder = recorder

    def reset(self, **kwargs: Any) -> Any:
        observations, infos = self.env.reset(**kwargs)
        self._begin(infos)
        return observations, infos

    def step(self, actions: Any) -> Any:
        self._actions.append(np.asarray(actions))
        result = self.env.step(actions)
        infos = result[4]
        if not result[2].all():
            self._masks.append(infos["action_mask"])
            return result
        final = infos["final_info"]
        for copy in range(self.num_envs):
            self.recorder.rewards.append(float(result[1][copy]))
            self.recorder.bits.append(final["bits"][copy].tolist())
            self.recorder.taken.append([int(taken[copy]) for taken in self._actions])
            self.recorder.masks += [mask[copy] for mask in self._masks]
            self.recorder.infos.append({key: value[copy] for key, value in final.items()})
        self._begin(infos)
        return result

    def _begin(self, infos: Any) -> None:
        self._actions: list[np.ndarray] = []
        self._masks = [infos["action_mask"]]


def make_env(count: int = 4, problem: int = 0, **options: Any) -> Recorder:
    """Makes a recorded environment over a synthetic task of `count` layers."""
    evaluator = AdditiveEvaluator(synthetic_layers(count, problem), problem)
    options = {"evaluator": evaluator, "sensitivity": evaluator.sensitivity, **options}
    return Recorder(QuantizationEnv(None, **options))


def search(name: str, evaluations: int, seed: int = 0, small: bool = True, **options: Any) -> Recorder:
    """Lets an agent learn and returns the environment that recorded it."""
    env = make_env(**options)
    agent(name, env, seed, small).learn(evaluations, lambda metrics: None)
    return env


def agent(name: str, env: gymnasium.Env, seed: int = 0, small: bool = True) -> Agent:
    """Makes an agent of a size fit for tests, or of its default size."""
    return make_agent(name, env, seed, SMALL.get(name) if small else None)


def play_greedily(env: Recorder, player: Agent) -> list[list[int]]:
    """Plays one episode by `act` and returns its bits."""
    observation, info = env.reset()
    player.start_episode()
    ended = False
    while not ended:
        observation, _, ended, _, info = env.step(player.act(observation, info["action_mask"]))
    return env.bits[-1]


def best_reward(env: Recorder) -> float:
    """Finds the best reward of any feasible weight allocation by trying them all."""
    inner: Any = env.unwrapped
    table, (budget,) = inner.tables["size"], inner.budgets
    bits = np.array(list(itertools.product(inner.bits, repeat=len(inner.layers))))
    rows = np.arange(bits.shape[1]), bits - 1, 7
    harm = inner.evaluator.harm[rows].sum(1)[table.values[rows].sum(1) <= budget.limit]
    return float(max(0.0, 0.96 - harm.min()) - 0.96)
