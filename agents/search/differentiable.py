"""Differentiable search: gradients through a network that holds every bit option (DNAS; EdMIPS).

Each group of tied layers has a softmax over its pairs of bits. A training step draws a pair for every group by the
Gumbel-max trick, runs the network that they make on a batch of the training split, and passes gradients straight
through the draw to all options (Wu et al., "Mixed precision quantization of ConvNets via differentiable neural
architecture search", 2018, section 4; Jang et al., ICLR 2017). The layer of several options is that of EdMIPS (Cai and
Vasconcelos, CVPR 2020). Weights are those of post-training quantization throughout, for that is how allocations are
evaluated. Budgets are held by a Lagrange multiplier each, which grows with the softmax's expected cost as long as that
exceeds the budget. What is derived is the most probable allocation that meets the budgets, exactly: a
multiple-choice knapsack whose harms are negative logarithms of probabilities.

What it costs. An evaluation runs the search split of S samples forwards once. A training step of B samples runs them
forwards and, at twice that cost, backwards, so that it costs

    3 * B / S equivalent evaluations

in multiply-accumulates; rounding and weighing the options is not counted, as rounding is not in an evaluation. Steps
are bought with evaluations before they are run: an evaluation is charged for the best allocation found so far, which
the store answers, and its worth in steps is run. So after any number of evaluations, what was computed is worth no
more than that many, and curves of the best found so far show what the gradients cost. `share` of the evaluations is
spent so, a few at a time, with an evaluation of what is derived in between; the rest goes to the most probable
allocations in turn. ``train/equivalent_evaluations`` says what the gradients have cost so far.

The search needs the network: it refuses evaluation tables, and environments made without a task.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
import torch.nn.functional as F

from agents.base import Log, counts_evaluations, require_in_range
from agents.search.ask_tell import AskTellAgent, Results
from agents.search.choices import Choices
from agents.search.next_best import next_best
from agents.search.supernet import mixed_network
from quantenv.core.allocation import MAX_BITS
from quantenv.core.errors import QuantenvError
from quantenv.envs.environment import QuantizationEnv
from quantenv.evaluation.preparing import calibrate_task
from quantenv.quantization.optimizers import Adam
from quantenv.tasks import Task

#: Cost of a training step in forward passes of its batch: backwards is counted as two.
PASSES = 3


@dataclass(frozen=True)
class DifferentiableConfig:
    """Options of the differentiable search."""

    share: float = 0.5
    """Share of the evaluations that is spent on gradients, 0-1."""
    block: int = 10
    """Evaluations' worth of steps between two evaluations of what is derived."""
    batch_size: int = 32
    """Samples of a training step."""
    learning_rate: float = 0.05
    """Of Adam, for the logits."""
    multiplier_rate: float = 0.02
    """Growth of a budget's multiplier, in nats, for a step at which the expected cost is twice the budget."""
    temperature: float = 1.0
    """Temperature of the softmax through which gradients of a draw pass."""

    def __post_init__(self) -> None:
        require_in_range(self, 0, 1, "share")
        require_in_range(self, 1, math.inf, "block", "batch_size")
        require_in_range(self, 0, math.inf, "learning_rate", "multiplier_rate")
        require_in_range(self, 1e-6, math.inf, "temperature")


class DifferentiableAgent(AskTellAgent):
    """Differentiable search: a softmax over every layer's bits, trained by gradients (DNAS, EdMIPS)."""

    name: ClassVar[str] = "differentiable"
    config_class: ClassVar[type] = DifferentiableConfig
    plans_ahead: ClassVar[bool] = True
    """How many evaluations gradients may cost follows from how many there will be."""
    needs_network: ClassVar[bool] = True
    """That it cannot search a table: for who chooses agents for one."""

    def __init__(self, env: gymnasium.Env, seed: int = 0, config: Any = None) -> None:
        """See `agents.base.Agent`.

        Raises:
            QuantenvError: If the environment has no network.
        """
        super().__init__(env, seed, config)
        self._task = _task_of(env)
        self._choices = Choices(self.problem)
        self._torch_generator = torch.Generator().manual_seed(seed)
        self._open = torch.from_numpy(self._choices.open)
        self._logits = torch.zeros(self._choices.open.shape, requires_grad=True)  # (F, P)
        self._optimizer = Adam([self._logits], self.config.learning_rate)
        self._prices = torch.from_numpy(self._choices.prices).float()  # (F, P, M)
        self._pinned = torch.from_numpy(self._choices.pinned).float()  # (M,)
        self._terms = [
            (
                torch.from_numpy(groups),
                torch.from_numpy(np.diff(values, axis=0, prepend=0.0)).float(),
                torch.from_numpy(self._choices.pairs[:, 1] <= np.arange(MAX_BITS)[:, None]).float().T,
            )
            for groups, values in self._choices.terms
        ]  # of each: groups, what each more bit costs (8, M), and whether a pair wants less than so many bits (P, 8)
        self._multipliers = torch.zeros(len(self._pinned))
        self._batches: list[torch.Tensor] = []  # of the running epoch
        self._step_cost = PASSES * self.config.batch_size / len(self._task.splits["search"])
        self._allowance = 0.0  # evaluations that may yet be spent on gradients
        self._buying = 0  # of what was asked for last
        self._credit = 0.0  # bought and not yet run
        self._spent = 0.0
        self._trained = True  # since something was derived
        self._asked: set[bytes] = set()
        self._loss = math.nan
        self._build()

    @counts_evaluations
    def learn(self, evaluations: int, log: Log) -> None:
        """Spends its share of the evaluations on gradients and the rest on what they lead to."""
        self._allowance += self.config.share * evaluations
        super().learn(evaluations, log)

    def ask(self, count: int) -> np.ndarray:
        """Proposes, in turn, the best known allocation to buy steps and what was derived by them."""
        self._buying = 0
        if self._trained:
            self._trained = False
            derived = self._most_probable(1)
            if len(derived):
                return derived
        if self.best is not None and self._allowance >= 1:
            self._buying = min(count, self.config.block, int(self._allowance))
            self._allowance -= self._buying
            return np.tile(np.array(self.best.actions), (self._buying, 1))
        return self._most_probable(count)

    def tell(self, results: Results) -> None:
        """Runs the steps that were bought."""
        self._credit += self._buying
        steps = int(self._credit / self._step_cost) if self._buying else 0
        if steps:
            self._loss = sum(self._step() for _ in range(steps)) / steps
            self._credit -= steps * self._step_cost
            self._spent += steps * self._step_cost
            self._trained = True

    def metrics(self) -> dict[str, float]:
        """Returns what the gradients have cost and where they have led; nothing before the first step."""
        if math.isnan(self._loss):
            return {}
        with torch.no_grad():
            shares = self._shares()
            entropy = -torch.xlogy(shares, shares).sum(dim=1).mean()
            load = self._loads(shares).max()
        return {
            "train/equivalent_evaluations": self._spent,
            "train/loss": self._loss,
            "train/entropy": float(entropy),
            "train/expected_cost": float(load),
            "train/multiplier": float(self._multipliers.max()),
        }

    def _build(self) -> None:
        """Builds the network of all options and says which group each of its layers belongs to."""
        walk, pairs = self.problem.walk, self._choices.pairs
        groups = np.unique(walk.groups).tolist()
        weights, activations = (np.unique(pairs[:, column]).tolist() for column in (0, 1))
        options: list[tuple[list[int], list[int]]] = []
        self._group_of: list[int | None] = []  # of each layer; None where it is pinned
        for group in walk.group_of.tolist():
            decided = group in groups
            self._group_of.append(groups.index(group) if decided else None)
            pinned = walk.start[group].tolist()
            options.append((weights, activations) if decided else ([pinned[0]], [pinned[1]]))
        self._network, self._layers = mixed_network(
            calibrate_task(self._task), [each[0] for each in options], [each[1] for each in options]
        )
        # From shares of pairs to shares of weight and of activation bits, (P, W) and (P, A).
        self._to_weights, self._to_activations = (
            torch.from_numpy((pairs[:, [column]] == np.array(bits)).astype(np.float32))
            for column, bits in ((0, weights), (1, activations))
        )

    def _step(self) -> float:
        """Takes a step of the logits and of the multipliers; returns the cross-entropy of the batch."""
        train = self._task.splits["train"]
        if not self._batches:
            order = torch.randperm(len(train), generator=self._torch_generator)
            self._batches = list(order.split(self.config.batch_size))
        batch = self._batches.pop()
        noise = torch.rand(self._logits.shape, generator=self._torch_generator).clamp_min(1e-20)
        soft = self._shares(-torch.log(-torch.log(noise)), self.config.temperature)
        hard = F.one_hot(soft.argmax(dim=1), soft.shape[1]).to(soft.dtype)
        drawn = hard + (soft - soft.detach())  # (F, P)
        for layer, group in zip(self._layers, self._group_of, strict=True):
            if group is not None:
                layer.weight_share = drawn[group] @ self._to_weights
                layer.input_share = drawn[group] @ self._to_activations
        loss = F.cross_entropy(self._network(train.inputs[batch]), train.labels[batch])
        loads = self._loads(self._shares())
        # Of the logits only: the network shares what it does not replace with others.
        (self._logits.grad,) = torch.autograd.grad(loss + (self._multipliers * loads).sum(), self._logits)
        self._optimizer.step()
        self._multipliers += self.config.multiplier_rate * (loads.detach() - 1)
        self._multipliers.clamp_min_(0)
        return float(loss.detach())

    def _shares(self, noise: torch.Tensor | float = 0.0, temperature: float = 1.0) -> torch.Tensor:
        """Returns the softmax over the open pairs of each group, (F, P)."""
        logits = (self._logits + noise) / temperature
        return logits.masked_fill(~self._open, -math.inf).softmax(dim=1)

    def _loads(self, shares: torch.Tensor) -> torch.Tensor:
        """Returns the expected share of each limit that is taken, (M,)."""
        loads = self._pinned + torch.einsum("fp,fpm->m", shares, self._prices)
        for groups, more, less in self._terms:  # the most bits exceed b unless all groups want b at most
            loads = loads + (1 - (shares[groups] @ less).prod(dim=0)) @ more
        return loads

    def _most_probable(self, count: int) -> np.ndarray:
        """Returns the actions (k, T) of the most probable feasible allocations that were not asked for yet."""
        with torch.no_grad():
            logits = self._logits.double().masked_fill(~self._open, -math.inf)
            harms = -logits.log_softmax(dim=1).numpy()
        wanted = len(self._asked) + count
        found = [solution.options for solution in next_best(self._choices.knapsack(harms), wanted)]
        picks = [pick for pick in found if pick.tobytes() not in self._asked][:count]
        self._asked.update(pick.tobytes() for pick in picks)
        return self._choices.actions(np.array(picks, dtype=np.int64).reshape(-1, len(self._choices.open)))


def _task_of(env: gymnasium.Env) -> Task:
    """Returns the task whose network an environment is about.

    Raises:
        QuantenvError: If there is none.
    """
    inner: QuantizationEnv = env.unwrapped  # type: ignore[assignment]
    if inner.table is not None:
        raise QuantenvError(
            f"Agent 'differentiable' needs the network and its gradients, and table {inner.table.name!r} holds only "
            f"evaluations: search task {inner.table.task!r} itself, or choose another agent."
        )
    if not inner.subject.measurable:
        raise QuantenvError(
            "Agent 'differentiable' needs the network and its gradients, and the environment was made with an "
            "evaluator only: make it with a task, or choose another agent."
        )
    task = inner.subject.resolve("the differentiable search needs its network")
    assert isinstance(task, Task)
    if task.channel_groups:
        raise QuantenvError(
            "Agent 'differentiable' mixes the bits of whole layers, and the task has channel groups: leave "
            "--channel_groups out, or choose another agent."
        )
    return task
