"""What a report says, section by section."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.leaderboard.markdown import to_markdown
from experiments.leaderboard.statistics import Estimate
from experiments.reports.charts import anytime, pareto
from experiments.reports.drawing import Look
from experiments.reports.groups import LEARNER, WARM, Group, looks_of
from experiments.reports.known import CaseKnown, Known
from experiments.reports.layer_charts import bits_against, bits_by_layer, pattern_chart
from experiments.reports.page import Section, bullets, escape, from_markdown, paragraph, table
from experiments.reports.patterns import KINDS, Pattern, patterns
from experiments.reports.runs import runs_section
from experiments.reports.searches import Benchmark, Case, Point, Search, Setting, Sources, merge_fronts
from experiments.reports.verdicts import (
    Verdict,
    in_short,
    learners_against_baselines,
    mixed_against_uniform,
    without_search,
)
from experiments.runs.final_table import HEADINGS
from quantenv.core.errors import QuantenvError
from quantenv.hardware import format_quantity

#: Points of the agents' common front that are listed.
FRONT_ROWS = 12

HOW_TO_READ = (
    "Search accuracy is what agents maximise; the best of many evaluations on one split looks better there than it is. "
    "Test accuracy, where it is given, is of allocations that were chosen on the search split.",
    "Beats and loses are said only where the 95% interval over searches leaves 0 out and, against uniform bits, where "
    "the difference is also larger than the sampling error of the images. Intervals need at least three searches. The "
    "best agent of each side is compared, chosen by the same searches, which flatters the side with more agents.",
    "Counted evaluations are equal for all agents of a comparison. Agents that use the proxy measured sensitivities "
    "besides, once for a task; how much is said in evaluations' worth of work.",
    "The ILP curve: exact solutions of the additive proxy, the sum of the layers' sensitivities, at many "
    "budgets, each evaluated. It is what one gets without any search.",
    "Layers are first and last by place; depthwise and pointwise (1x1) by their convolution; middle is all the rest. "
    "Even bits are what the budget buys if all decided layers get the same, interpolated between those on offer.",
)


def make_sections(
    sources: Sources, groups: Mapping[Case, list[Group]], known: Mapping[Setting, Known], place: Path
) -> tuple[list[Section], list[str]]:
    """Writes a report's sections.

    Args:
        sources: What was read.
        groups: Groups of every case, the best first.
        known: What is known of every setting.
        place: Folder of the page.

    Returns:
        The sections, and the sentences that sum them up.
    """
    looks = looks_of(groups)
    judged = {
        case: _verdicts(found, known[case.setting], known[case.setting].cases.get(case))
        for case, found in groups.items()
    }
    short = in_short([verdict for found in judged.values() for verdict in found])
    sections = [_short(short, groups, judged, sources, known)]
    sections += [runs_section(sources.runs, place)] if sources.runs else []
    sections.append(_searches(sources))
    for number, (setting, settled) in enumerate(known.items(), start=1):
        cases = {case: found for case, found in groups.items() if case.setting == setting}
        sections.append(_setting_section(number, setting, cases, settled, sources.benchmarks, looks))
    for number, benchmark in enumerate(sources.benchmarks, start=1):
        sections.append(_leaderboard(number, benchmark))
    sections.append(Section("how-to-read", "How to read it", [bullets(HOW_TO_READ)]))
    return sections, short


def _verdicts(groups: Sequence[Group], known: Known, case_known: CaseKnown | None) -> list[Verdict]:
    learners = (learners_against_baselines(groups, family) for family in (LEARNER, WARM))
    return [mixed_against_uniform(groups, known, case_known), *(found for found in learners if found is not None)]


def _short(
    short: Sequence[str],
    groups: Mapping[Case, Sequence[Group]],
    judged: Mapping[Case, Sequence[Verdict]],
    sources: Sources,
    known: Mapping[Setting, Known],
) -> Section:
    section = Section("in-short", "In short")
    section.parts.append('<div class="short">' + "".join(map(paragraph, short)) + "</div>")
    for case, verdicts in judged.items():
        section.parts.append(f"<h3>{escape(case.title)}</h3>")
        settled = known[case.setting]
        baseline = without_search(groups[case], settled, settled.cases.get(case))
        section.parts.append(bullets([verdict.sentence for verdict in verdicts] + ([baseline] if baseline else [])))
        final = [
            f"{search.agent}, seed {search.seed}: {sentence}"
            for search in sources.searches
            if search.case == case
            for sentence in search.final
        ]
        if final:
            section.parts += [paragraph("The runs' own final tables, on the test split:", "quiet"), bullets(final)]
    missing = [*sources.missing, *dict.fromkeys(reason for each in known.values() for reason in each.missing)]
    section.parts.append("<h3>What is missing, and why</h3>")
    section.parts.append(
        f'<div class="missing">{bullets(missing)}</div>' if missing else paragraph("Nothing.", "quiet")
    )
    return section


def _searches(sources: Sources) -> Section:
    section = Section("searches", "Searches")
    for benchmark in sources.benchmarks:
        searches = [search for search in sources.searches if search.folder == benchmark.folder]
        agents, cases = ({getattr(search, name) for search in searches} for name in ("agent", "case"))
        section.parts.append(
            paragraph(
                f"Benchmark {benchmark.name} ({benchmark.folder}): {len(searches):,} searches by {len(agents)} "
                f"agents in {len(cases)} cases, {searches[0].asked:,} evaluations each."
            )
        )
    runs = [search for search in sources.searches if search.benchmark is None]
    heads = ["agent", "case", "folder", "seed", "evaluations", "best search accuracy", "its cross-entropy", "its cost"]
    if runs:
        section.parts.append(table(heads, [_run_row(search) for search in runs], texts=3))
    return section


def _run_row(search: Search) -> list[str]:
    best, made = search.best, len(search.curve)
    return [
        search.agent,
        search.case.title,
        search.folder,
        str(search.seed),
        f"{made:,}" if made >= search.asked else f"{made:,} of {search.asked:,}",
        "nothing feasible" if best is None else f"{best.correct / search.samples:.2%}",
        "-" if best is None else f"{best.loss:.4f}",
        "-" if best is None else ", ".join(format_quantity(name, cost) for name, cost in best.costs.items()),
    ]


def _setting_section(
    number: int,
    setting: Setting,
    cases: Mapping[Case, Sequence[Group]],
    known: Known,
    benchmarks: Sequence[Benchmark],
    looks: Mapping[str, Look],
) -> Section:
    section = Section(f"task-{number}", setting.title)
    samples = next(iter(cases.values()))[0].searches[0].samples
    about = f"Task {setting.task}; device {setting.device}; decided: {setting.decisions}"
    about += f"; {samples:,} samples in the search split"
    about += "" if known.accuracy is None else f"; float network {known.accuracy:.2%}"
    about += "" if known.layers is None else f"; {len(known.layers)} layers"
    section.parts.append(paragraph(f"{about}.", "quiet"))
    for metric in setting.metrics:
        section.add(pareto(setting, metric, cases, known, looks))
        section.parts.append(_front_table(metric, cases))
    columns = (0,) if setting.decisions == "weights" else (0, 1)
    for case, groups in cases.items():
        case_known = known.cases.get(case)
        section.add(anytime(case, groups, case_known, benchmarks, looks))
        for column in columns:
            section.add(bits_by_layer(case, groups, known, case_known, column))
            for cause in ("sensitivity", *setting.metrics):
                section.add(bits_against(case, groups, known, case_known, column, cause, looks))
        if known.layers is None:
            continue
        found = patterns(groups, known.layers, case_known)
        even = None if case_known is None else case_known.even_bits
        section.add(pattern_chart(case, found, groups, even, looks))
        if found:
            section.parts.append(_pattern_table(found, even))
    return section


def _front_table(metric: str, cases: Mapping[Case, Sequence[Group]]) -> str:
    """Lists the front of all agents together and who found each point, since markers there hide one another."""
    found: dict[tuple[float, int], dict[str, Point]] = {}
    searches = [(each.label, search) for groups in cases.values() for each in groups for search in each.searches]
    for label, search in searches:
        for point in search.fronts[metric]:
            found.setdefault((point.costs[metric], point.correct), {}).setdefault(label, point)
    front = merge_fronts([search.fronts[metric] for _, search in searches], metric)[-FRONT_ROWS:]
    samples = searches[0][1].samples
    rows = []
    for point in front:
        finders = found[point.costs[metric], point.correct]
        weights = " ".join(str(weight) for weight, _ in point.bits)
        accuracy, cost = f"{point.correct / samples:.2%}", format_quantity(metric, point.costs[metric])
        rows.append([", ".join(sorted(finders)), weights, cost, accuracy])
    caption = f"The front of all agents together, at most its {FRONT_ROWS} most accurate points, and who found them."
    heads = ["found by", "weight bits of one of them", HEADINGS[metric], "search accuracy"]
    return paragraph(caption, "caption") + table(heads, rows, texts=2)


def _pattern_table(found: Sequence[Pattern], even_bits: float | None) -> str:
    kinds = [kind for kind in (*KINDS, "all") if kind in found[0].means]
    heads = ["best allocations of", "bits of", "searches", *kinds]
    rows = [
        [
            pattern.label,
            pattern.what,
            str(pattern.searches or "-"),
            *(_mean(pattern.means[kind], even_bits) for kind in kinds),
        ]
        for pattern in found
    ]
    even = "" if even_bits is None else f"; behind each mean how far it is from the even {even_bits:.2f} bits"
    absent = [kind for kind in KINDS if kind not in kinds]
    none = f" The network has no {' and no '.join(absent)} layers." if absent else ""
    return paragraph(f"Mean bits, with 95% bootstrap intervals over searches{even}.{none}", "caption") + table(
        heads, rows, texts=2
    )


def _mean(mean: Estimate, even_bits: float | None) -> str:
    value = float(mean.value)
    text = f"{value:.2f}" if even_bits is None else f"{value:.2f} ({value - even_bits:+.2f})"
    return text if np.isnan(mean.low) else f"{text} [{float(mean.low):.2f}, {float(mean.high):.2f}]"


def _leaderboard(number: int, benchmark: Benchmark) -> Section:
    try:
        parts = list(from_markdown(to_markdown(benchmark.leaderboard), 3))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise QuantenvError(
            f"{benchmark.folder}/leaderboard.json is damaged ({error!r}): run the benchmark again, which makes it anew."
        ) from error
    return Section(f"leaderboard-{number}", f"Leaderboard {benchmark.name}", parts)
