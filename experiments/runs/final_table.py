"""The final table: its rows as data, as JSON, as Markdown and on the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from quantenv.core.allocation import Allocation
from quantenv.core.errors import QuantenvError
from quantenv.core.reading import Schema
from quantenv.evaluation.base import Evaluation
from quantenv.hardware import METRICS, Budget, format_quantity

FORMAT = "quantenv-report-1"
HEADINGS = {"size": "size", "bops": "BOPs", "latency": "latency", "energy": "energy", "memory": "memory"}

Count = Annotated[int, msgspec.Meta(ge=0)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Metric = Annotated[str, msgspec.Meta(pattern=f"^({'|'.join(METRICS)})$")]


class Row(Schema, frozen=True):
    """One network on the test split."""

    name: Annotated[str, msgspec.Meta(min_length=1)]
    """``float``, ``uniform 8``, ``best uniform`` or ``found``."""
    stage: str
    """``post-training``, ``QAT``, or empty for the float network."""
    correct: Count
    """Test samples classified correctly."""
    samples: Annotated[int, msgspec.Meta(ge=1)]
    """Test samples."""
    loss: NonNegative | None
    """Mean cross-entropy in nats; None where the network's outputs are no numbers."""
    costs: dict[Metric, NonNegative]
    """Cost by metric, SI units; without the metrics that are not defined for the row."""
    within_budget: bool | None
    """Whether every budget is met; None if that is not defined."""
    allocation: dict[str, Any] | None
    """Content of the allocation's file; None for the float network."""
    best_epoch: Count | None = None
    """Of a fine-tuned row: the epoch of its checkpoint; 0 is the network before training."""
    diverged: bool = False
    """Of a fine-tuned row: whether training diverged, so that the row is the best that there was before."""
    epochs: tuple[dict[str, float], ...] = ()
    """Of a fine-tuned row: what each epoch reported, from the one before training on: accuracy, losses, rate."""

    @property
    def stage_title(self) -> str:
        """The stage, and what has to be known of its training: ``QAT, diverged``."""
        return (
            f"{self.stage}, diverged" if self.diverged else f"{self.stage}, epoch 0" if self.untrained else self.stage
        )

    @property
    def untrained(self) -> bool:
        """Whether it was fine-tuned and is nevertheless the network before training."""
        return self.best_epoch == 0

    @property
    def accuracy(self) -> float:
        """Top-1 accuracy, 0-1."""
        return self.correct / self.samples

    @property
    def evaluation(self) -> Evaluation:
        """The row's result on the test split."""
        return Evaluation(self.correct, self.samples, math.nan if self.loss is None else self.loss)

    @property
    def title(self) -> str:
        """Name and bits: ``best uniform 4/8``."""
        if self.allocation is None or self.name == "found":
            return self.name
        pairs = {(layer["weight_bits"], layer["activation_bits"]) for layer in self.allocation["layers"]}
        bits = ", ".join(f"{weight}/{activation}" for weight, activation in sorted(pairs))
        return f"{self.name.removesuffix(' 8')} {bits}"


class Report(Schema, frozen=True, tag_field="format", tag=FORMAT):
    """The final table of a run and what it says."""

    complete: bool
    """Whether the run went to its end; False if it was interrupted."""
    evaluations: Count
    """Evaluations of the search."""
    budgets: dict[Metric, NonNegative]
    """Limit by metric, SI units."""
    rows: tuple[Row, ...]
    """The networks compared, all on the test split."""
    verdicts: tuple[str, ...]
    """Whether mixed precision beat uniform, one sentence for each comparison."""
    notes: tuple[str, ...]
    """What has to be known to read the table."""
    measured_evaluations: NonNegative = 0.0
    """What was measured besides, sensitivities that the agent or its observations are about, in evaluations of one
    allocation on the whole search split."""

    def row(self, name: str, stage: str) -> Row | None:
        """Returns a row by name and stage, if there is one."""
        return next((row for row in self.rows if (row.name, row.stage) == (name, stage)), None)

    def to_dict(self) -> dict[str, Any]:
        """Returns the content of `report.json`, but for the checksum."""
        content: dict[str, Any] = msgspec.to_builtins(self)
        return content

    def __str__(self) -> str:
        """Returns table, notes and verdicts as Markdown."""
        return to_markdown(self)

    def check(self) -> "Report":
        """Returns the report, once what its schema cannot say was found right.

        Raises:
            QuantenvError: If counts exceed their samples, or an allocation is not sound.
        """
        for row in self.rows:
            if row.correct > row.samples:
                raise QuantenvError(f"row {row.name!r} has {row.correct} correct of {row.samples} samples.")
            if row.allocation is not None:
                Allocation.from_dict(row.allocation, f"the allocation of row {row.name!r}")
        return self


def budgets_text(budgets: Mapping[str, float]) -> str:
    """Returns the limits in pretty units: ``size <= 1.71 KiB``."""
    return ", ".join(f"{metric} <= {format_quantity(metric, limit)}" for metric, limit in budgets.items())


def limits(budgets: Sequence[Budget]) -> dict[str, float]:
    """Returns limits by metric."""
    return {budget.metric: budget.limit for budget in budgets}


def print_report(report: Report, console: Console) -> None:
    """Prints the table, then notes and verdicts."""
    title = f"On the test split, budget {budgets_text(report.budgets)}"
    table = Table(title=title, title_justify="left", title_style="bold")
    for index, heading in enumerate(headings(report)):
        table.add_column(heading, justify="left" if index < 2 else "right", no_wrap=index < 2)
    for row in report.rows:
        table.add_row(*cells(report, row), style="bold" if row.name == "found" else "")
    console.print(table)
    for note in report.notes:
        console.print(Text(note, style="dim"))
    for verdict in report.verdicts:
        console.print(Text(verdict, style="bold"))


def to_markdown(report: Report) -> str:
    """Returns table, notes and verdicts as Markdown, the content of `report.md`."""
    columns = headings(report)
    lines = [
        f"Test split; budget {budgets_text(report.budgets)}; {counted_text(report)}.",
        "",
        f"| {' | '.join(columns)} |",
        f"|{'|'.join(['---'] * 2 + ['---:'] * (len(columns) - 2))}|",
        *(f"| {' | '.join(cells(report, row))} |" for row in report.rows),
        "",
        *report.notes,
        "",
        *report.verdicts,
    ]
    return "\n".join(lines) + "\n"


def counted_text(report: Report) -> str:
    """Returns what the search took: ``100 evaluations (+25 measured)``."""
    measured = f" (+{report.measured_evaluations:,.1f} measured)" if report.measured_evaluations else ""
    return f"{report.evaluations} evaluations{measured}"


def _metrics(report: Report) -> list[str]:
    return [metric for metric in METRICS if any(metric in row.costs for row in report.rows)]


def headings(report: Report) -> list[str]:
    """Returns the headings of the table."""
    costs = [HEADINGS[metric] for metric in _metrics(report)]
    return ["network", "stage", "accuracy", "cross-entropy", *costs, "in budget"]


def cells(report: Report, row: Row) -> list[str]:
    """Returns a row of the table as text, a cell for each heading."""
    costs = [format_quantity(metric, row.costs[metric]) if metric in row.costs else "-" for metric in _metrics(report)]
    within = "-" if row.within_budget is None else "yes" if row.within_budget else "no"
    return [row.title, row.stage_title or "-", f"{row.accuracy:.2%}", f"{row.evaluation.loss:.4f}", *costs, within]
