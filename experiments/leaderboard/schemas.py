"""What the JSON files of a benchmark's folder hold besides their checksums."""

from typing import Annotated, Any

import msgspec

from quantenv.core.reading import Schema

Count = Annotated[int, msgspec.Meta(ge=0)]
Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Ratio = Annotated[float, msgspec.Meta(gt=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]


class Description(Schema, frozen=True):
    """A search as its part and `jobs.json` describe it: the fields of its `Job`, and what else is known of it."""

    task: str
    metric: str
    budget: Ratio
    agent: str
    seed: Count
    evaluations: Positive
    device: str
    decisions: str
    constraint: str
    agent_options: dict[str, Any]
    key: str
    """Hash of all that the search depends on."""
    config: dict[str, Any]
    """The agent's options, all of them."""
    evaluator_identity: str
    equivalent_evaluations: NonNegative
    environment_seconds: NonNegative
    agent_seconds: NonNegative


class JobsFile(Schema, frozen=True, tag_field="format", tag="quantenv-jobs-1"):
    """What `jobs.json` holds."""

    jobs: list[Description]


class Interval(Schema, frozen=True):
    """A statistic and its interval; null where it is not finite."""

    value: float | None
    low: float | None
    high: float | None


class JudgedInterval(Interval, frozen=True):
    """An interval of a comparison, and whether it holds no difference."""

    within_interval: bool


class Quartiles(Schema, frozen=True):
    """Quartiles of the seeds."""

    median: float | None
    low: float | None
    high: float | None


class TimeTo(Schema, frozen=True):
    """Evaluations to a target; see `experiments.leaderboard.statistics.TimeToTarget`."""

    runs: Positive
    reached: Count
    median: float | None
    low: float | None
    high: float | None
    expected: float | None


class CaseRow(Schema, frozen=True):
    """A task under a budget; see `experiments.leaderboard.results.Case`."""

    task: str
    metric: str
    budget: Ratio
    limit: NonNegative
    samples: Positive
    best: int
    exact: bool
    uniform: int | None
    feasible: Count | None
    tied: Count | None
    sampling_error: NonNegative


class AgentRow(Schema, frozen=True):
    """An agent in one case."""

    task: str
    metric: str
    budget: Ratio
    rank: Positive
    agent: str
    runs: Positive
    regret: dict[str, Interval]
    quartiles: dict[str, Quartiles]
    score: Interval | None
    behind_best: JudgedInterval
    improvement: dict[str, JudgedInterval | str] | None
    evaluations_to: dict[str, TimeTo]
    equivalent_evaluations: NonNegative


class OverallRow(Schema, frozen=True):
    """An agent over all cases."""

    agent: str
    cases: Count
    regret: dict[str, Interval]
    score: Interval | None
    improvement: dict[str, JudgedInterval | str] | None
    reached: dict[str, Count]
    runs: Positive
    rank: Positive
    behind_best: JudgedInterval | None


class Timing(Schema, frozen=True):
    """Median wall time of a search, seconds."""

    task: str
    budget: Ratio
    agent: str
    environment_seconds: NonNegative
    agent_seconds: NonNegative


class RefusedAgent(Schema, frozen=True):
    """An agent that could not search a task, in its own words."""

    agent: str
    task: str
    sentence: str


class Lines(Schema, frozen=True):
    """Values along an axis and their intervals."""

    value: list[float | None]
    low: list[float | None]
    high: list[float | None]


class Profiles(Schema, frozen=True):
    """Performance profiles by agent."""

    regret: list[float]
    agents: dict[str, Lines]


class LeaderboardFile(Schema, frozen=True, tag_field="format", tag="quantenv-leaderboard-1"):
    """What `leaderboard.json` holds."""

    suite: dict[str, Any]
    environment: dict[str, Any]
    refused: list[RefusedAgent]
    checkpoints: Annotated[list[Positive], msgspec.Meta(min_length=1)]
    cases: list[CaseRow]
    rows: list[AgentRow]
    overall: list[OverallRow]
    profiles: Profiles
    timing: list[Timing]


class Curve(Schema, frozen=True):
    """The anytime curve of an agent in one case."""

    task: str
    metric: str
    budget: Ratio
    agent: str
    regret: Lines
    accuracy: Lines


class CurvesFile(Schema, frozen=True, tag_field="format", tag="quantenv-curves-1"):
    """What `curves.json` holds."""

    evaluations: list[Positive]
    curves: list[Curve]

    def __post_init__(self) -> None:
        points = len(self.evaluations)
        for curve in self.curves:
            for line in (curve.regret, curve.accuracy):
                if not len(line.value) == len(line.low) == len(line.high) == points:
                    raise ValueError(f"a curve of {curve.agent} has not {points} points, as there are evaluations")
