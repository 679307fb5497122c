"""What an agent is, and the registry that finds agents by name and imports only the one asked for."""

import ast
import dataclasses
import functools
import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv

from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.typed import MOST_SEED, check_fields, checked, short

Config = TypeVar("Config")

#: Receives training metrics by name, in SB3's style: ``{"train/policy_loss": 0.1}``.
Log = Callable[[Mapping[str, float]], None]

#: Entry point group in which other distributions name their agents: ``name = "module:Class"``.
ENTRY_POINTS = "quantenv.agents"

#: The agents of this package. A name here wins over an entry point of the same name.
BUILT_IN = {
    "a2c": "agents.rl.a2c:A2CAgent",
    "annealing": "agents.search.annealing:AnnealingAgent",
    "cma-es": "agents.search.optuna_agents:CMAESAgent",
    "ddpg": "agents.rl.ddpg:DDPGAgent",
    "differentiable": "agents.search.differentiable:DifferentiableAgent",
    "gp": "agents.search.gp:GPAgent",
    "greedy-down": "agents.search.greedy:GreedyDownAgent",
    "greedy-up": "agents.search.greedy:GreedyUpAgent",
    "ilp": "agents.search.ilp_agents:ILPAgent",
    "ilp-top": "agents.search.ilp_agents:ILPTopAgent",
    "nsga2": "agents.search.optuna_agents:NSGA2Agent",
    "ppo": "agents.rl.ppo:PPOAgent",
    "ppo-warm": "agents.rl.warm_start:PPOWarmAgent",
    "random": "agents.search.random:RandomAgent",
    "recurrent-ppo": "agents.rl.recurrent_ppo:RecurrentPPOAgent",
    "reinforce": "agents.rl.reinforce:ReinforceAgent",
    "reinforce-warm": "agents.rl.warm_start:ReinforceWarmAgent",
    "sac": "agents.rl.sac:SACAgent",
    "surrogate": "agents.search.surrogate:SurrogateAgent",
    "td3": "agents.rl.td3:TD3Agent",
    "tpe": "agents.search.optuna_agents:TPEAgent",
    "trpo": "agents.rl.trpo:TRPOAgent",
    "uniform": "agents.search.uniform:UniformAgent",
}


class Agent(Protocol):
    """Learns by acting in a quantization environment and then acts deterministically.

    An agent is a deterministic function of (env, seed, config): runs are resumed by replaying them, so it
    draws from its own generators, reads no clock and leaves the global random states as they were.

    A run can be given more evaluations when it has ended. So a search of more evaluations must begin like one of fewer,
    but for a last batch of episodes that is cut short: an agent that plays several side by side says how many by an
    option ``episodes_per_update`` or ``episodes_per_batch`` or by a class attribute ``together``; one that divides its
    evaluations up beforehand has a class attribute ``plans_ahead = True``, and its runs are not given more.
    """

    name: ClassVar[str]
    """Registered name."""
    config_class: ClassVar[type]
    """Frozen dataclass of the agent's options, every field with a default."""
    config: Any
    """The options in force, an instance of `config_class`."""

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """Makes an untrained agent for one environment; does not reset the environment.

        Args:
            env: A QuantizationEnv, wrapped or not.
            seed: Fixes everything random in the agent.
            config: Instance of `config_class`; None means its defaults.
        """
        ...

    def learn(self, evaluations: int, log: Log) -> None:
        """Acts and learns until exactly this many further episodes have finished.

        Args:
            evaluations: Episodes to finish in this call, each one evaluation.
            log: Receives the agent's own training metrics after each update.

        Raises:
            QuantenvError: If the environment gives a reward that is not finite.
        """
        ...

    def start_episode(self) -> None:
        """Forgets the running episode; call it before the first `act` of each episode."""
        ...

    def act(self, observation: np.ndarray, action_mask: np.ndarray) -> int:
        """Chooses greedily.

        Args:
            observation: Shape (F,).
            action_mask: Shape (A,), nonzero where the action is allowed.

        Returns:
            An action of the plain environment: an index into its (pairs of) bits.
        """
        ...

    def save(self, path: Path) -> None:
        """Writes what `load` needs to act as now, atomically."""
        ...

    def load(self, path: Path) -> None:
        """Reads what `save` wrote.

        Raises:
            QuantenvError: If the file is missing or damaged, is another agent's or fits another environment.
        """
        ...


def agent_names() -> list[str]:
    """Returns every registered name, sorted: built in or from entry points."""
    return sorted({*BUILT_IN, *_third_party()})


def agent_class(name: str) -> type[Agent]:
    """Imports the class of a registered agent.

    Raises:
        QuantenvError: If the name is not registered, or a third party's entry point cannot be loaded.
    """
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    third_party = _third_party()
    if name not in third_party:
        raise unknown_name("agent", name, agent_names())
    entry = third_party[name]
    try:
        return entry.load()
    except Exception as error:  # importing runs the third party's code, which may fail in any way
        raise QuantenvError(
            f"Agent {name!r} is registered as {entry.value!r}{_origin(entry)} but cannot be imported: "
            f"{error}. Repair or uninstall that distribution."
        ) from error


def make_agent(name: str, env: gymnasium.Env, seed: int = 0, config: Any = None) -> Agent:
    """Makes a registered agent.

    Args:
        name: One of `agent_names`.
        env: A QuantizationEnv, wrapped or not.
        seed: Fixes everything random in the agent.
        config: Instance of the agent's `config_class`, or a mapping of fields that differ from its defaults.

    Raises:
        QuantenvError: If the name or a field of the mapping is unknown, or a value has a wrong type or range.
    """
    config = make_config(name, config)
    return agent_class(name)(env, checked_seed(seed), config)


def make_config(name: str, config: Any = None) -> Any:
    """Makes the config of a registered agent, so that mistakes in its options are found before it has a network.

    Args:
        name: One of `agent_names`.
        config: As for `make_agent`.

    Raises:
        QuantenvError: As `make_agent`.
    """
    return in_force(config, agent_class(name).config_class, f"agent {name!r}")


def in_force(config: Any, kind: type[Config], agent: str = "this agent") -> Config:
    """Returns an agent's config.

    Args:
        config: Instance of `kind`, a mapping of fields that differ from its defaults, or None for the defaults.
        kind: The agent's `config_class`.
        agent: How messages call the agent.

    Raises:
        QuantenvError: If it is something else, a field of the mapping is unknown, or one holds another type than it
            should.
    """
    if isinstance(config, Mapping):
        return _fill(kind, agent, config)
    if config is not None and not isinstance(config, kind):
        raise QuantenvError(
            f"{agent[:1].upper()}{agent[1:]} is configured by a {kind.__name__} or a mapping of its fields, "
            f"not by a {type(config).__name__}."
        )
    config = kind() if config is None else config
    check_fields(config, f"{kind.__name__}: ")
    return config


def checked_seed(seed: Any) -> int:
    """Returns an agent's seed, NumPy's whole numbers as Python's.

    Raises:
        QuantenvError: If it is no whole number that NumPy, torch and Stable-Baselines3 all take.
    """
    value = checked(seed, int, "An agent's seed")
    if not 0 <= value <= MOST_SEED:
        raise QuantenvError(f"An agent's seed is {value}; expected a whole number from 0 to {MOST_SEED}.")
    return value


def counts_evaluations(learn: Callable[[Any, int, Log], None]) -> Callable[[Any, int, Log], None]:
    """Wraps an agent's `learn`: it is only called with a whole number of evaluations, 0 or more.

    Raises:
        QuantenvError: In the wrapped method, for any other number.
    """

    @functools.wraps(learn)
    def checking(self: Any, evaluations: int, log: Log) -> None:
        count = checked(evaluations, int, "The number of evaluations to learn from")
        if count < 0:
            raise QuantenvError(f"The number of evaluations to learn from is {count}; expected 0 or more.")
        learn(self, count, log)

    return checking


def describe() -> dict[str, str]:
    """Returns the first docstring line of every agent by name, read from its source: none is imported."""
    targets = BUILT_IN | {name: entry.value for name, entry in _third_party().items() if name not in BUILT_IN}
    return {name: _first_line(target) for name, target in sorted(targets.items())}


def problem_size(env: gymnasium.Env) -> tuple[int, int, int]:
    """Returns the numbers of observed features F, of actions A and of decisions in an episode T.

    Raises:
        QuantenvError: If the environment is not a QuantizationEnv, wrapped or not, with its own action space.
    """
    features, actions = env.observation_space.shape, env.action_space
    decisions = getattr(env.unwrapped, "n_decisions", None)
    if features is None or not isinstance(actions, gymnasium.spaces.Discrete) or decisions is None:
        raise QuantenvError(
            f"Agents act in a QuantizationEnv with its own discrete actions, not in {env}: "
            "give that, and leave ContinuousBits to the agents that need it."
        )
    return features[0], int(actions.n), decisions


def vectorize(env: gymnasium.Env, num_envs: int) -> VectorEnv:
    """Makes copies of an agent's environment that take every decision together.

    The allocations that they finish are evaluated in one batch: faster, and shared among workers if there are any.
    Every copy's episode is counted and recorded as those of the environment itself.

    Args:
        env: A QuantizationEnv. A wrapper around it takes part by a method `vectorize` of its own; only Gymnasium's
            checks of the calling order and of types need none.
        num_envs: Copies, N, at least 1.

    Returns:
        The copies, all of whose episodes begin and end at once, with ``AutoresetMode.SAME_STEP``.

    Raises:
        QuantenvError: If a wrapper has no `vectorize`: copies of what is in it would do without it.
    """
    inner = env
    while isinstance(inner, gymnasium.wrappers.OrderEnforcing | gymnasium.wrappers.PassiveEnvChecker):
        inner = inner.env
    if not hasattr(inner, "vectorize"):
        raise QuantenvError(
            f"This agent runs several episodes side by side, but {type(inner).__name__} has no method "
            "vectorize(num_envs): give it one that wraps what agents.base.vectorize(self.env, num_envs) returns, "
            "or leave it out."
        )
    return inner.vectorize(num_envs)


def finite_reward(reward: Any) -> float:
    """Returns a reward as a float, for learners.

    Raises:
        QuantenvError: If it is infinite or NaN: one such reward would turn every weight into NaN.
    """
    value = float(reward)
    if not math.isfinite(value):
        raise QuantenvError(
            f"The environment gave the reward {value}, from which no agent can learn: "
            "set a finite infeasible_reward in constraint_options."
        )
    return value


def require_in_range(config: Any, low: float, high: float, *names: str) -> None:
    """Checks fields of an agent's config.

    Raises:
        QuantenvError: If a field is no number, lies outside [low, high] or is NaN.
    """
    kinds = {field.name: field.type for field in dataclasses.fields(config)}
    for name in names:
        value = checked(getattr(config, name), kinds[name], f"{type(config).__name__}: {name}")
        if not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise QuantenvError(f"{type(config).__name__}: {name} must be {bounds}, not {value!r}.")


def _third_party() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINTS)}


def _origin(entry: EntryPoint) -> str:
    return f" by distribution {entry.dist.name!r}" if entry.dist else ""


def _fill(config_class: type, agent: str, options: Mapping[str, Any]) -> Any:
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in fields and not fields:
            raise QuantenvError(f"There are no options of {agent}: leave {short(name)} out.")
        if name not in fields:
            raise unknown_name(f"option of {agent}", name, fields)
        values[name] = checked(value, fields[name].type, f"Option {name!r} of {agent}")
    return config_class(**values)


def _first_line(target: str) -> str:
    module, _, attribute = target.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        return f"(cannot be found: {error})"
    if spec is None or not spec.has_location or spec.origin is None or not spec.origin.endswith(".py"):
        return f"(no source for {target})"
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.ClassDef) and node.name == attribute:
            return (ast.get_docstring(node) or "(no docstring)").splitlines()[0]
    return f"(no class {attribute} in {module})"
