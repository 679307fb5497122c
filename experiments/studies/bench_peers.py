"""`make bench-peers`: the race with what a user would pick instead, Sony's MCT and HAQ's way.

Every run is a process of its own with one thread and an empty cache; see `experiments.studies.peers`. Both programs get
the same float network and the same 512 calibration images. Results are written after every run; `--only` and
`--programs` bring some of them up to date and keep the others.
"""

import datetime
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from experiments.options.console import announcements
from experiments.options.parsing import parse_options
from experiments.studies.harness import circumstances
from experiments.studies.peers.job import ACTIONS, Job
from experiments.studies.peers.run import in_process
from experiments.studies.peers.tables import to_markdown
from quantenv.core.errors import QuantenvError, unknown_name
from quantenv.core.files import cache_dir, write_text
from quantenv.core.reading import read_json

NAME = "bench_peers"


@dataclass(frozen=True)
class BenchOptions:
    """Races quantenv with Sony's MCT and with HAQ's way of evaluating."""

    only: str = ""
    """Parts to measure, as mixed,rounding; by default all: mixed (weights of 2, 4 or 8 bits within a size), rounding
    (the same bits everywhere), large (times at 224 pixels) and haq (what an episode costs)."""
    programs: str = ""
    """Programs to run, as quantenv; by default all: mct, quantenv, haq. Of the others the results are kept."""
    ratios: list[float] = field(default_factory=lambda: [0.75, 0.5, 0.35])
    """Budgets: ratios of the size of 8-bit weights."""
    mixed_schemes: list[str] = field(default_factory=lambda: ["linear"])
    """quantenv's schemes for mixed bits, besides its default."""
    networks: list[str] = field(default_factory=lambda: ["resnet20", "efficientnet"])
    """Networks for uniform bits."""
    bits: list[int] = field(default_factory=lambda: [4, 3])
    """Uniform weight bits; activations have 8."""
    schemes: list[str] = field(
        default_factory=lambda: ["linear", "linear+adaround+batch-norm", "linear+brecq+batch-norm"]
    )
    """quantenv's schemes for uniform bits, besides its default."""
    epochs: list[int] = field(default_factory=lambda: [5, 20])
    """MCT's passes over the calibration images in gradient-based post-training quantization (GPTQ) with all errors
    alike."""
    hessian_epochs: list[int] = field(default_factory=lambda: [5])
    """The same with errors weighted by estimates of the Hessian, MCT's default, which takes ten times as long."""
    images: int = 16
    """Images of each split at 224 pixels."""
    episodes: int = 100
    """Episodes that our cost of one is measured by."""
    searched_images: list[int] = field(default_factory=lambda: [2_000, 10_000])
    """Images that ours searches on."""
    tuned_episodes: list[int] = field(default_factory=lambda: [1, 2])
    """Episodes of ours in which every evaluation is HAQ's, with an epoch of fine-tuning."""
    output: str = "experiments/studies/results"
    """Folder of the JSON file and the table."""


def main(arguments: Sequence[str]) -> int:
    """Runs the race.

    Args:
        arguments: The command line.

    Returns:
        Exit code 0, whoever wins.

    Raises:
        QuantenvError: If a name is unknown, data are missing or a run fails.
    """
    options = parse_options(BenchOptions, NAME, arguments)
    parts, programs = _chosen(options.only, PARTS, "part"), _chosen(options.programs, ACTIONS, "program")
    path = Path(options.output) / f"{NAME}.json"
    runs = _load(path)
    for part in parts:
        for job in PARTS[part](options, runs):
            if job.program not in programs:
                continue
            announcements().print(f"{part}: {job.key}", markup=False)
            about = circumstances(NAME, arguments, options)
            date = datetime.datetime.now(datetime.UTC).date().isoformat()
            recorded = {**asdict(job), "weights": Path(job.weights).name if job.weights else None}
            runs[job.key] = {"part": part, "job": recorded, "date": date, **about["environment"], **in_process(job)}
            write_text(path, json.dumps({"runs": runs}, indent=1) + "\n")
            write_text(path.with_suffix(".md"), to_markdown(runs))
    sys.stdout.write(to_markdown(runs))
    return 0


def _mixed(options: BenchOptions, runs: Mapping[str, Any]) -> Iterator[Job]:
    for ratio in options.ratios:
        rival = Job("mct", "mixed", "resnet20", ratio=ratio)
        yield rival
        for scheme in (None, *options.mixed_schemes):
            yield Job("quantenv", "mixed", "resnet20", ratio=ratio, scheme=scheme)
        if rival.key in runs:
            yield Job("quantenv", "evaluate", "resnet20", weight_bits=tuple(runs[rival.key]["weight_bits"]))


def _rounding(options: BenchOptions, runs: Mapping[str, Any]) -> Iterator[Job]:
    for network in options.networks:
        weights = str(_efficientnet()) if network == "efficientnet" else None
        for bits in options.bits:
            yield Job("mct", "uniform", network, bits=bits, weights=weights)
            for hessian, counts in ((False, options.epochs), (True, options.hessian_epochs)):
                for epochs in counts:
                    yield Job("mct", "gptq", network, bits=bits, weights=weights, hessian=hessian, epochs=epochs)
            for scheme in (None, *options.schemes):
                yield Job("quantenv", "uniform", network, bits=bits, weights=weights, scheme=scheme)


def _large(options: BenchOptions, runs: Mapping[str, Any]) -> Iterator[Job]:
    from experiments.studies.peers.networks import TIMED

    for network in TIMED:
        for program in ("mct", "quantenv"):
            yield Job(program, "mixed", network, ratio=0.5, images=options.images)


def _haq(options: BenchOptions, runs: Mapping[str, Any]) -> Iterator[Job]:
    for images in options.searched_images:
        for episodes in (options.episodes // 10, options.episodes):
            yield Job("quantenv", "episodes", "resnet20", images=images, episodes=episodes)
    yield Job("haq", "episodes", "resnet20", images=10_000, epochs=1, episodes=1)
    yield Job("haq", "episodes", "resnet20", images=10_000, episodes=2)
    yield Job("haq", "episodes", "resnet20", images=2_000, episodes=2)
    for episodes in options.tuned_episodes:
        yield Job("quantenv", "episodes", "resnet20", images=10_000, epochs=1, episodes=episodes)


#: The jobs of each part, in the order in which they are done.
PARTS = {"mixed": _mixed, "rounding": _rounding, "large": _large, "haq": _haq}


def _efficientnet() -> Path:
    """Returns the file of the EfficientNet-like network's weights, which are trained if there are none."""
    from experiments.studies.peers.efficientnet import trained_weights
    from quantenv.tasks import get_task

    path = cache_dir() / NAME / "efficientnet.pt"
    return path if path.is_file() else trained_weights(path, get_task("resnet20").splits["train"])


def _chosen(only: str, known: Mapping[str, Any], kind: str) -> list[str]:
    names = [name.strip() for name in only.split(",") if name.strip()] or list(known)
    for name in names:
        if name not in known:
            raise unknown_name(f"{kind} of the race:", name, known)
    return names


def _load(path: Path) -> dict[str, Any]:
    """Reads the runs that were measured before."""
    if not path.is_file():
        return {}
    runs = read_json(path, dict[str, Any], what="file of a benchmark's results").get("runs")
    if not isinstance(runs, dict):
        raise QuantenvError(f"{path} does not hold the results of the race: move it away.")
    return runs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
