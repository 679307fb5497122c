"""The leaderboard for reading: `leaderboard.md`."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.leaderboard.statistics import LEAST_RUNS

#: Behind what does not differ from the best by more than the interval of the difference.
TIED = "≈"


def to_markdown(content: Mapping[str, Any]) -> str:
    """Draws the content of `leaderboard.json`."""
    checkpoints = content["checkpoints"]
    suite, cases = content["suite"], content["cases"]
    lines = [
        f"# Leaderboard `{suite['name']}`",
        "",
        f"{suite['evaluations']:,} counted evaluations a search, {suite['seeds']} seeds, {suite['metric']} budgets as "
        "ratios of the 8-bit cost, search split. Regret: percentage points of accuracy below the best feasible "
        "allocation; interquartile mean of the seeds with its 95% stratified bootstrap interval, which needs three "
        "seeds. "
        f"{TIED}: not told apart from the best of the table, since the interval of the difference holds 0. "
        "Score: (found - best uniform) / (best - best uniform) in accuracy, after the last checkpoint: 1 at the "
        "optimum, 0 where a search gains nothing over uniform bits.",
        "",
        "## Over all cases",
        "",
        *_table(
            ["", "agent", *_regret_heads(checkpoints), "score", *_improvement_heads(content), "optimum found", "cases"],
            [_overall_row(row, checkpoints, content) for row in content["overall"]],
        ),
    ]
    for case in cases:
        rows = [row for row in content["rows"] if (row["task"], row["budget"]) == (case["task"], case["budget"])]
        timing = {
            line["agent"]: line
            for line in content["timing"]
            if (line["task"], line["budget"]) == (case["task"], case["budget"])
        }
        lines += ["", f"## {case['task']}, {case['metric']} {case['budget']:g}", "", _about(case), ""]
        lines += _table(
            [
                *["", "agent", *_regret_heads(checkpoints), *_improvement_heads(content)],
                *["evaluations to the optimum", "to the sampling error", "seconds: environment + agent"],
            ],
            [_row(row, checkpoints, content, timing[row["agent"]]) for row in rows],
        )
    lines += ["", "## Median and quartiles of the seeds", ""]
    lines += _table(
        ["task", "budget", "agent", *_regret_heads(checkpoints)],
        [
            [
                row["task"],
                f"{row['budget']:g}",
                row["agent"],
                *(_quartiles(row["quartiles"][str(c)], row["runs"]) for c in checkpoints),
            ]
            for row in content["rows"]
        ],
    )
    lines += list(_notes(content))
    return "\n".join(lines) + "\n"


def _about(case: Mapping[str, Any]) -> str:
    best = f"{case['best'] / case['samples']:.2%} of {case['samples']:,} samples"
    uniform = "none" if case["uniform"] is None else f"{case['uniform'] / case['samples']:.2%}"
    error = f"sampling error {case['sampling_error']:.2f} points"
    if not case["exact"]:
        return (
            f"Best accuracy that any run found (the optimum is not known): {best}, {error}. Best uniform allocation: "
            f"{uniform}."
        )
    return (
        f"Optimum of {case['feasible']:,} feasible allocations, {case['tied']:,} as accurate: {best}, {error}. "
        f"Best uniform allocation: {uniform}."
    )


def _overall_row(row: Mapping[str, Any], checkpoints: Sequence[int], content: Mapping[str, Any]) -> list[str]:
    tied = f" {TIED}" if row["rank"] > 1 and row["behind_best"] and row["behind_best"]["within_interval"] else ""
    return [
        str(row["rank"]),
        row["agent"] + tied,
        *(_interval(row["regret"][str(checkpoint)]) for checkpoint in checkpoints),
        _interval(row["score"], 3) if row["score"] else "-",
        *_improvements(row, checkpoints, content),
        f"{row['reached']['optimum']}/{row['runs']}",
        str(row["cases"]),
    ]


def _row(
    row: Mapping[str, Any], checkpoints: Sequence[int], content: Mapping[str, Any], timing: Mapping[str, Any]
) -> list[str]:
    tied = f" {TIED}" if row["rank"] > 1 and row["behind_best"]["within_interval"] else ""
    besides = f" (+{row['equivalent_evaluations']:,.0f} measured)" if row["equivalent_evaluations"] else ""
    end = content["suite"]["evaluations"]
    return [
        str(row["rank"]),
        row["agent"] + tied + besides,
        *(_interval(row["regret"][str(checkpoint)]) for checkpoint in checkpoints),
        *_improvements(row, checkpoints, content),
        *(_time(row["evaluations_to"][target], end) for target in ("optimum", "sampling_error")),
        f"{timing['environment_seconds']:.2f} + {timing['agent_seconds']:.2f}",
    ]


def _regret_heads(checkpoints: Sequence[int]) -> list[str]:
    return [f"regret after {checkpoint:,}" for checkpoint in checkpoints]


def _improvement_heads(content: Mapping[str, Any]) -> list[str]:
    """Heads of the probability of improvement, if any agent could be compared."""
    if not any(row["improvement"] for row in content["overall"]):
        return []
    return [f"P(beats {content['suite']['compare_with']}) after {c:,}" for c in content["checkpoints"]]


def _improvements(row: Mapping[str, Any], checkpoints: Sequence[int], content: Mapping[str, Any]) -> list[str]:
    if not _improvement_heads(content):
        return []
    if row["improvement"] is None:
        return ["-"] * len(checkpoints)
    return [_interval(row["improvement"][str(checkpoint)]) for checkpoint in checkpoints]


def _interval(estimate: Mapping[str, Any], digits: int = 2) -> str:
    value, low, high = (_number(estimate[key], digits) for key in ("value", "low", "high"))
    return value if estimate["low"] is estimate["high"] is None else f"{value} ({low} to {high})"


def _quartiles(quartiles: Mapping[str, Any], runs: int) -> str:
    median, low, high = (_number(quartiles[key], 2) for key in ("median", "low", "high"))
    return median if runs < LEAST_RUNS else f"{median} ({low} to {high})"


def _number(value: float | None, digits: int) -> str:
    return "none" if value is None else f"{value:.{digits}f}"


def _time(time: Mapping[str, Any], end: int) -> str:
    median, low, high = (f">{end:,}" if time[key] is None else f"{time[key]:,.0f}" for key in ("median", "low", "high"))
    interval = "" if time["runs"] < LEAST_RUNS else f" ({low} to {high})"
    return f"{median}{interval}, {time['reached']}/{time['runs']} runs"


def _notes(content: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "## How to read it"
    yield ""
    if any(row["improvement"] for row in content["overall"]):
        yield (
            f"- P(beats {content['suite']['compare_with']}): probability that a run has less regret than one of that "
            "agent, ties half, with its interval; one that holds 0.5 tells nothing."
        )
    yield (
        "- Evaluations to a target: the median over the runs and its interval; runs that end before they reach it "
        "count as longer than the others. The sampling error is the binomial standard error of the best accuracy: less "
        "regret than that is noise of the search split, not quality."
    )
    yield "- Seconds: median wall time of a search on one thread, in the environment with its evaluations and besides."
    if any(row["equivalent_evaluations"] for row in content["rows"]):
        yield (
            "- (+n measured): sensitivities that an agent starts from, or that its observations show, measured besides "
            "its counted evaluations, in evaluations' worth of work."
        )
    for refusal in content["refused"]:
        yield f"- Not run: {refusal['agent']} on {refusal['task']}: {refusal['sentence']}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        f"| {' | '.join(heads)} |",
        "|" + "---|" * len(heads),
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
