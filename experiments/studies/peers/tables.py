"""The race as tables: what each program took and found."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.studies.peers.job import Job

#: Episodes of the searches that HAQ's paper reports, over which preparation is spread.
EPISODES = 600
#: What issue and docs ask of our cost against HAQ's: with its fine-tuning, our default number of images and its own.
TARGETS = {2_000: 150, 10_000: 35}

Run = Mapping[str, Any]
Runs = Mapping[str, Run]


def to_markdown(runs: Runs) -> str:
    """Writes all runs as tables, a section for each part that has any.

    Args:
        runs: By the key of their jobs, as `bench_peers` keeps them.

    Returns:
        Markdown.
    """
    lines = [
        "# quantenv beside what a user would pick instead",
        "",
        "Measured by `make bench-peers`. Every run is a process of its own with one thread and an empty cache; seconds "
        "are of the processor, user and system, of the process and those it started. *Work* is all that a program does "
        "after imports and decoding of images, which both do alike: preparation, search and the evaluation on 2,000 "
        "test images, each by the program itself. Processor seconds grow where other work shares the caches: compare "
        "within a table.",
    ]
    for part, section in SECTIONS.items():
        chosen = [run for run in runs.values() if run["part"] == part]
        if chosen:
            lines += ["", *section(chosen), "", _where(chosen)]
    return "\n".join(lines) + "\n"


def _mixed(runs: Sequence[Run]) -> Iterator[str]:
    yield from (
        "## Mixed precision: Sony's MCT",
        "",
        "ResNet-20 on CIFAR-10, 512 calibration images, weights of 2, 4 or 8 bits, activations of 8. MCT is "
        f"{_version(runs)}, `pytorch_post_training_quantization` with its defaults (platform IMX500) and a limit on "
        '`weights_memory`; ours `quantenv.search(task, agent="ilp", budget=ratio, bits=(2, 4, 8), evaluations=1)`. '
        "Size is of all layers' weights, first and last included, relative to 8 bits.",
        "",
        "| budget | program | size met | test accuracy | work, s | of it evaluation, s | imports, s | images, s | "
        "weight bits |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---|",
    )
    by_key = {_job(run).key: run for run in runs}
    for run in runs:
        job = _job(run)
        if job.action != "mixed":
            continue
        yield f"| {job.ratio} | {_name(run)} | {_found(run)} | {_times(run)} | {_bits(run)} |"
        if job.program == "mct":
            again = Job("quantenv", "evaluate", job.network, weight_bits=tuple(run["weight_bits"])).key
            if again in by_key:
                ours = by_key[again]
                yield (
                    f"| {job.ratio} | MCT's bits, our `{ours['scheme']}` | {_found(ours)} | {_times(ours)} | as MCT's |"
                )
    ours = {run["job"]["ratio"]: run for run in runs if _is_default(run) and run["job"]["action"] == "mixed"}
    rivals = {run["job"]["ratio"]: run for run in runs if run["job"]["program"] == "mct"}
    yield ""
    for ratio in [ratio for ratio in rivals if ratio in ours]:
        yield f"- At {ratio}: {_against(ours[ratio], rivals[ratio])}."


def _rounding(runs: Sequence[Run]) -> Iterator[str]:
    yield from (
        "## The same bits everywhere: Sony's MCT with trained rounding",
        "",
        "Weights of the same bits in all layers, first and last included, activations of 8 bits, 512 calibration "
        "images. MCT with GPTQ is `pytorch_gradient_post_training_quantization` with so many epochs of those images, "
        "errors weighted by estimates of the Hessian as is its default, or all alike; without GPTQ it is "
        "`pytorch_post_training_quantization`.",
        "",
        "| network | weight bits | program | test accuracy | work, s |",
        "|---|---:|---|---:|---:|",
    )
    for run in sorted(runs, key=lambda run: (run["job"]["network"], -run["job"]["bits"], run["job"]["program"])):
        job = _job(run)
        yield f"| {job.network} | {job.bits} | {_name(run)} | {_accuracy(run)} | {_work(run):.1f} |"
    yield ""
    for network, bits in sorted({(run["job"]["network"], run["job"]["bits"]) for run in runs}):
        best = {
            program: max(chosen, key=lambda run: (run["correct"], -_work(run)))
            for program in ("mct", "quantenv")
            if (chosen := [run for run in runs if _is(run, program, network, bits)])
        }
        if len(best) == 2:
            yield f"- Best of each, {network}, {bits} bits: {_against(best['quantenv'], best['mct'])}."


def _large(runs: Sequence[Run]) -> Iterator[str]:
    images = runs[0]["job"]["images"]
    yield from (
        "## Times at 224 pixels",
        "",
        f"Random weights and random images, {images} for calibration, as many for the search and for the evaluation, "
        "weights of 2, 4 or 8 bits within half of the 8-bit size. Accuracies would mean nothing.",
        "",
        "| network | program | work, s | of it evaluation, s |",
        "|---|---|---:|---:|",
    )
    for run in runs:
        yield f"| {_job(run).network} | {_name(run)} | {_work(run):.1f} | {run['phases']['evaluation']:.1f} |"


def _haq(runs: Sequence[Run]) -> Iterator[str]:
    yield from (
        "## HAQ's way",
        "",
        "Processor seconds of an episode on ResNet-20. HAQ's is enacted again as its published code does it "
        "(`experiments/studies/peers/haq.py`); ours is `quantenv.search` with agent `ddpg`, all of it: agent, "
        "environment and evaluation. Searches on 10,000 images use training images, as HAQ's do.",
        "",
        "| program | search images | fine-tuning | an episode, s | preparation, s |",
        "|---|---:|---|---:|---:|",
    )
    costs = _episode_costs(runs)
    for (program, images, epochs), (episode, preparation) in costs.items():
        yield (
            f"| {program} | {images:,} | {'an epoch on 20,000 images' if epochs else 'none'} | {episode:.3f} | "
            f"{preparation:.1f} |"
        )
    yield ""
    for images, epochs, rival_images, rival_epochs, text in (
        (2_000, 0, 10_000, 1, "as published (fine-tuning, 10,000 images) to ours on our default 2,000 images"),
        (10_000, 0, 10_000, 1, "as published to ours on its 10,000 images, without fine-tuning"),
        (10_000, 0, 10_000, 0, "without its fine-tuning to ours, both on 10,000 images"),
        (2_000, 0, 2_000, 0, "without its fine-tuning to ours, both on 2,000 images"),
        (10_000, 1, 10_000, 1, "as published to ours with an epoch of fine-tuning, both on 10,000 images"),
    ):
        rival, ours = costs.get(("haq", rival_images, rival_epochs)), costs.get(("quantenv", images, epochs))
        if rival and ours:
            ratio = EPISODES * rival[0] / (EPISODES * ours[0] + ours[1])
            target = TARGETS[images] if rival_epochs and not epochs else None
            said = "" if target is None else f" (target {target}: {'met' if ratio >= target else '**not met**'})"
            yield f"- HAQ {text}, {EPISODES} episodes with our preparation: {ratio:.1f}{said}."


#: What writes each part.
SECTIONS = {"mixed": _mixed, "rounding": _rounding, "large": _large, "haq": _haq}


def _episode_costs(runs: Sequence[Run]) -> dict[tuple[str, int, int], tuple[float, float]]:
    """Returns (seconds of an episode, of preparation) by program, images and epochs.

    Of searches of two lengths the difference is what episodes cost, and the rest preparation.
    """
    grouped: dict[tuple[str, int, int], list[tuple[int, float]]] = {}
    for run in runs:
        job = _job(run)
        key = job.program, int(job.images or 0), job.epochs
        grouped.setdefault(key, []).append((job.episodes, run["phases"]["search"]))
    costs = {}
    for key, points in grouped.items():
        (less, least), (more, most) = min(points), max(points)
        if more > less:
            episode = (most - least) / (more - less)
            costs[key] = episode, max(0.0, least - less * episode)
        elif key[0] == "haq":  # keeps nothing from one episode to the next
            costs[key] = least / less, 0.0
    return costs


def _job(run: Run) -> Job:
    return Job.from_plain(dict(run["job"]))


def _is_default(run: Run) -> bool:
    return run["job"]["program"] == "quantenv" and run["job"]["scheme"] is None


def _is(run: Run, program: str, network: str, bits: int) -> bool:
    job = run["job"]
    return (job["program"], job["network"], job["bits"]) == (program, network, bits)


def _against(ours: Run, rival: Run) -> str:
    """Says by how much we are better and slower than a rival."""
    points = 100 * (ours["correct"] / ours["samples"] - rival["correct"] / rival["samples"])
    return f"ours {points:+.2f} points in {_work(ours) / _work(rival):.2f} times MCT's work"


def _name(run: Run) -> str:
    job = _job(run)
    if job.program == "mct":
        weighted = ", Hessian-weighted (default)" if job.hessian else ", unweighted"
        return f"MCT, GPTQ, {job.epochs} epochs{weighted}" if job.action == "gptq" else "MCT"
    return f"quantenv, `{run['scheme']}`{'' if job.scheme else ' (default)'}"


def _accuracy(run: Run) -> str:
    return f"{100 * run['correct'] / run['samples']:.2f}%"


def _found(run: Run) -> str:
    return f"{run['ratio']:.3f} | {_accuracy(run)}"


def _work(run: Run) -> float:
    return run["phases"]["search"] + run["phases"]["evaluation"]


def _times(run: Run) -> str:
    phases = run["phases"]
    return " | ".join(f"{value:.1f}" for value in (_work(run), phases["evaluation"], phases["imports"], phases["data"]))


def _bits(run: Run) -> str:
    return " ".join(map(str, run["weight_bits"]))


def _version(runs: Sequence[Run]) -> str:
    return next((run["version"] for run in runs if "version" in run), "not measured here")


def _where(runs: Sequence[Run]) -> str:
    samples = {run["samples"] for run in runs if "samples" in run and run["part"] != "large"}
    error = f" Standard error of an accuracy: at most {50 / math.sqrt(min(samples)):.1f} points." if samples else ""
    last = max(runs, key=lambda run: run["date"])
    revisions = sorted({_revision(str(run["git_revision"])) for run in runs})
    return (
        f"{last['date']}, {last['cpu']}, one thread; torch {last['packages']['torch']}; revision"
        f"{'s' if len(revisions) > 1 else ''} {', '.join(revisions)}.{error}"
    )


def _revision(text: str) -> str:
    return f"{text[:9]}{' (changed)' if text.endswith('-dirty') else ''}"
