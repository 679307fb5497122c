"""Searches of one agent in one case, grouped: what is drawn in one colour and averaged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from agents.base import BUILT_IN
from experiments.leaderboard.results import NOTHING
from experiments.leaderboard.statistics import interquartile_mean
from experiments.reports.drawing import COLOURS, Look, look_of
from experiments.reports.searches import Case, Search, Setting, Sources

#: What agents are, by the module that they come from; other agents of this package's `agents` are learners.
LEARNER, WARM, BASELINE, OTHER = "RL", "RL started from the proxy", "baseline", "third party"
_FAMILIES = {
    "agents.rl.warm_start": WARM,
    "agents.search.random": BASELINE,
    "agents.search.differentiable": BASELINE,
}
#: The agent that tries uniform allocations: no search, but what searches are compared with.
UNIFORM = "uniform"
#: Groups of each family that a figure shows at first; the others are a click away in its legend.
SHOWN = 3


@dataclass(frozen=True, eq=False)
class Group:
    """Searches of one agent in one case, from one benchmark or from single runs."""

    case: Case
    """The case."""
    agent: str
    """The agent."""
    label: str
    """How it is called; with its source, if searches of its task have several."""
    searches: tuple[Search, ...]
    """Its searches, by seed."""

    @property
    def family(self) -> str:
        """What kind of agent it is."""
        target = BUILT_IN.get(self.agent.partition(" (")[0])
        if target is None:
            return OTHER
        module = target.partition(":")[0]
        return _FAMILIES.get(module, BASELINE if module.startswith("agents.search.") else LEARNER)

    @property
    def evaluations(self) -> int:
        """Evaluations that each of its searches has made at least."""
        return min(len(search.curve) for search in self.searches)

    @cached_property
    def accuracies(self) -> np.ndarray:
        """Best feasible accuracy of each search after all evaluations that all have made, 0-1, or -inf, (n,)."""
        return self.accuracies_at(self.evaluations)

    @property
    def best_accuracy(self) -> float:
        """Best feasible accuracy of all searches, 0-1; 0 if there was none."""
        return max((search.best.correct / search.samples for search in self.searches if search.best), default=0.0)

    def accuracies_at(self, evaluations: int) -> np.ndarray:
        """Returns the best feasible accuracy of each search so far, 0-1, float64 (n,); -inf where there was none."""
        found = np.array([search.curve[evaluations - 1] for search in self.searches])
        samples = np.array([search.samples for search in self.searches])
        return np.where(found == NOTHING, -np.inf, found / samples)

    @property
    def order(self) -> tuple[float, str]:
        """Sorts groups of a case: highest interquartile mean of the accuracy first."""
        return -float(interquartile_mean(self.accuracies)), self.label


def group(sources: Sources) -> dict[Case, list[Group]]:
    """Groups searches by case, agent and source, the best first in each case."""
    origins: dict[Setting, set[str | None]] = {}
    for search in sources.searches:
        origins.setdefault(search.case.setting, set()).add(search.benchmark)
    members: dict[tuple[Case, str, str | None], list[Search]] = {}
    for search in sources.searches:
        members.setdefault((search.case, search.agent, search.benchmark), []).append(search)
    groups: dict[Case, list[Group]] = {}
    for (case, agent, benchmark), searches in members.items():
        label = agent if len(origins[case.setting]) == 1 else f"{agent} \N{MIDDLE DOT} {benchmark or 'runs'}"
        ordered = tuple(sorted(searches, key=lambda search: (search.seed, search.folder)))
        groups.setdefault(case, []).append(Group(case, agent, label, ordered))
    for found in groups.values():
        found.sort(key=lambda each: each.order)
    return groups


def shown_at_first(groups: Sequence[Group]) -> set[str]:
    """Returns labels of the groups that figures of a case show at first: the best ones of each family."""
    if len(groups) <= 2 * SHOWN:
        return {each.label for each in groups}
    families: dict[str, list[str]] = {}
    for each in groups:
        families.setdefault(each.family, []).append(each.label)
    return {label for labels in families.values() for label in labels[:SHOWN]}


def looks_of(groups: Mapping[Case, Sequence[Group]]) -> dict[str, Look]:
    """Returns the look of each label: that of an agent in every figure, its colour whatever the source."""
    agents = sorted({each.agent for found in groups.values() for each in found})
    turn = len(COLOURS) * -(-len(agents) // len(COLOURS))
    looks = {}
    for found in groups.values():
        benchmarks = sorted({name for each in found if (name := each.searches[0].benchmark)})
        for each in found:
            name = each.searches[0].benchmark
            origin = benchmarks.index(name) if name else len(benchmarks)  # runs look unlike benchmarks
            looks[each.label] = look_of(agents.index(each.agent) + origin * turn)
    return looks
