"""Every reader of every kind of file in the project, with a maker of a sound sample.

A new reader belongs into `READERS`: what is not in it, is not tried.
"""

import dataclasses
import io
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from quantenv.core.errors import QuantenvError

#: Samples by the name of a part of the project that several readers share.
Parts = Callable[[str], Path]


@dataclass(frozen=True)
class Reader:
    """A reader of one kind of file."""

    name: str
    """What it reads, unique."""
    form: str
    """Key of `tests.fuzz.structures.FORMS`."""
    own: bool
    """Whether quantenv writes the file, with a checksum: no change of it may be accepted."""
    make: Callable[[Path, Parts], Path]
    """Makes a sound sample in a folder, given shared parts, and returns the file that is mutated."""
    read: Callable[[Path], Any]
    """Reads the file at a path; the folder around it is that of the sample."""
    share: float = 1.0
    """Mutants for one of an average reader: less where reading takes long."""


#: Evaluations of the sample of a run.
EVALUATIONS = 8


class Damaged(QuantenvError):
    """A file that its reader moved aside, to make it anew."""


# Shared parts -----------------------------------------------------------------------------------------------


def make_part(name: str, folder: Path) -> Path:
    """Makes a part that several readers share, in an empty folder, and returns what it is about."""
    return {"table": _table_file, "run": _run, "benchmark": _benchmark}[name](folder)


def _table_file(folder: Path) -> Path:
    from tests.synthetic_table import synthetic_table

    path = folder / "mine.npz"
    synthetic_table(4, bits=(2, 4, 8), weights={"a": np.arange(6.0), "b": np.ones((2, 2), np.float32)}).save(path)
    return path


def _run(folder: Path) -> Path:
    """The folder of a finished run, with fine-tuning."""
    from experiments.cli.main import main

    short = (
        f"--evaluations={EVALUATIONS}",
        "--qat.epochs=1",
        "--agent_options.hidden=8",
        "--agent_options.layers=1",
        "--top_k=3",
    )
    assert main(["train", f"--runs={folder}", *short]) == 0
    (run,) = folder.glob("digits/reinforce/*")
    return run


def _benchmark(folder: Path) -> Path:
    from experiments.cli import benchmark as command
    from experiments.cli.main import main
    from experiments.leaderboard.workers import attempt

    table = _table_file(folder)

    def serial(jobs: Any, *rest: Any, **more: Any) -> Any:
        return ((job, attempt(job, None)) for job in jobs)

    suite = ("--agents=[random,annealing]", "--budgets=[0.6]", "--seeds=2", "--evaluations=6", "--checkpoints=[3,6]")
    ours, command.run_all = command.run_all, serial  # processes take seconds to start
    try:
        assert main(["benchmark", f"--tasks=[{table}]", *suite, "--resamples=50", f"--output={folder / 'out'}"]) == 0
    finally:
        command.run_all = ours
    return folder / "out"


# Allocations, devices, problems, look-ups -------------------------------------------------------------------


def _layers() -> Any:
    from tests.synthetic import synthetic_layers

    return synthetic_layers(4)


def _make_allocation(folder: Path, parts: Parts) -> Path:
    from quantenv.core.allocation import Allocation

    path = folder / "best.json"
    Allocation.make(_layers(), [2, 4, 8, 6], 8, "synthetic", "linear").save(path)
    return path


def _read_allocation(path: Path) -> Any:
    from quantenv.core.allocation import Allocation

    return Allocation.load(path).check_fits(_layers())


def _make_device(folder: Path, parts: Parts) -> Path:
    import quantenv.hardware.devices as devices

    return Path(shutil.copy(Path(devices.__file__).parent / "generic.yaml", folder / "mine.yaml"))


def _read_device(path: Path) -> Any:
    from quantenv.hardware import load_device
    from tests.synthetic import chain_costs

    device = load_device(str(path))
    return device, chain_costs(_layers(), device)


def _make_lookup(folder: Path, parts: Parts) -> Path:
    np.save(folder / "lookup.npy", np.random.default_rng(0).uniform(1, 2, (4, 8, 8)))
    return folder / "lookup.npy"


def _read_lookup(path: Path) -> Any:
    from quantenv.core.activations import chain
    from quantenv.hardware.lookup import LookupTable
    from quantenv.hardware.workload import Workload

    return LookupTable(path, 1.0).table(Workload(_layers(), chain(_layers())))


def _make_problem(folder: Path, parts: Parts) -> Path:
    data = Path(__file__).parents[1] / "data" / "hawq_v3_resnet18.json"
    return Path(shutil.copy(data, folder / "problem.json"))


def _read_problem(path: Path) -> Any:
    from experiments.cli.problem_file import read_problem_file

    problem = read_problem_file(path)
    problem.knapsack(list(problem.costs), [1e9] * len(problem.costs))
    return problem


# Tables and stores ------------------------------------------------------------------------------------------


def _make_table(folder: Path, parts: Parts) -> Path:
    return Path(shutil.copy(parts("table"), folder / "mine.npz"))


def _read_table(path: Path) -> Any:
    from quantenv.evaluation.table.evaluation_table import EvaluationTable

    return EvaluationTable.load(path).hash


def _records() -> Any:
    from tests.evaluation.records import many

    return many(40)


def _make_store(folder: Path, parts: Parts) -> Path:
    from quantenv.evaluation.store.store import EvaluationStore

    path = folder / "store.sqlite"
    store = EvaluationStore(str(path))
    store.add_all(_records())
    store.close()
    return path


def _read_store(path: Path) -> Any:
    """Looks everything up; what a damaged store has lost is evaluated again, so only other values are changes."""
    from quantenv.evaluation.store.store import EvaluationStore

    store = EvaluationStore(str(path))
    try:
        expected = {record.bits: record.evaluation for record in _records()}
        found = store.find("a", "search", list(expected))
        store.add_all(_records())
        again = store.find("a", "search", list(expected))
        if not found.items() <= expected.items() or again != expected:
            return found, again
        if len(found) < len(expected):
            raise Damaged("begun anew")
        return expected, expected
    finally:
        store.close()


def _read_merged(path: Path) -> Any:
    """Reads a store or an export as `quantenv store merge` does; rows may be missing, as in any other store."""
    from experiments.cli.store import _records_of

    def value(record: Any) -> str:
        return repr(dataclasses.replace(record, created=0.0))  # when the sample was made

    found = {value(record) for record in _records_of(str(path))}
    expected = {value(record) for record in _records()}
    if found < expected:
        raise Damaged("rows were deleted")
    return sorted(found)


def _make_export(folder: Path, parts: Parts) -> Path:
    from experiments.cli.main import main

    store = _make_store(folder, parts)
    assert main(["store", "export", str(folder / "export.jsonl"), f"--store={store}"]) == 0
    return folder / "export.jsonl"


def _make_measurements(folder: Path, parts: Parts) -> Path:
    from quantenv.sensitivity.measurements import Measurements

    path = folder / "measured.json"
    measured = Measurements(path, "identity")
    measured.keep(("kl 4", "kl 8"), [[0.1, 2.5, 3.0]] * 2)
    return path


def _read_measurements(path: Path) -> Any:
    from quantenv.sensitivity.measurements import Measurements

    measured = Measurements(path, "identity")
    if "kl 4" not in measured and "kl 8" not in measured:
        raise Damaged("measured anew")
    return {name: measured[name] for name in ("kl 4", "kl 8") if name in measured}


# Tensors ----------------------------------------------------------------------------------------------------


def _network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 3, dtype=torch.float32)
        )


def _make_weights(folder: Path, parts: Parts) -> Path:
    torch.save(_network().state_dict(), folder / "weights.pt")
    return folder / "weights.pt"


def _make_nested_weights(folder: Path, parts: Parts) -> Path:
    state = {f"module.{name}": value for name, value in _network().state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1, "betas": (0.9, 0.99)}}, folder / "last.ckpt")
    return folder / "last.ckpt"


def _make_their_safetensors(folder: Path, parts: Parts) -> Path:
    import safetensors.torch

    safetensors.torch.save_file(_network().state_dict(), folder / "weights.safetensors", {"format": "pt"})
    return folder / "weights.safetensors"


def _make_our_weights(folder: Path, parts: Parts) -> Path:
    from quantenv.core.tensor_file import WEIGHTS_FORMAT, write_tensors

    write_tensors(folder / "weights.safetensors", WEIGHTS_FORMAT, {}, _network().state_dict())
    return folder / "weights.safetensors"


def _read_weights(path: Path) -> Any:
    from quantenv.tasks.networks.state_dicts import load_weights

    network = _network(1)
    load_weights(network, path)
    return network.state_dict()


def _read_tensors(path: Path) -> Any:
    from quantenv.core.weight_files import open_tensors

    return open_tensors(path, "weights")


def _agent(name: str) -> Any:
    from tests.agents.searches import agent, make_env

    return agent(name, make_env(), seed=1)


def _make_agent(name: str) -> Callable[[Path, Parts], Path]:
    def make(folder: Path, parts: Parts) -> Path:
        player = _agent(name)
        player.learn(3, lambda metrics: None)
        player.save(folder / "agent.safetensors")
        return folder / "agent.safetensors"

    return make


@cache
def _reading_agent(name: str) -> Any:
    return _agent(name)


def _read_agent(name: str, state: Callable[[Any], Any]) -> Callable[[Path], Any]:
    def read(path: Path) -> Any:
        player = _reading_agent(name)
        player.load(path)
        return state(player)

    return read


def _annealing() -> Any:
    from agents import make_agent
    from tests.agents.searches import make_env

    return make_agent("annealing", make_env(), 1)


def _make_annealing(folder: Path, parts: Parts) -> Path:
    player = _annealing()
    player.learn(5, lambda metrics: None)
    player.save(folder / "agent.safetensors")
    return folder / "agent.safetensors"


def _read_annealing(path: Path) -> Any:
    player = _annealing()
    player.load(path)
    return player.best


@cache
def _finetuning() -> Any:
    """A fine-tuning that can begin at once: task, allocation, recipe, calibration."""
    from quantenv.core.allocation import Allocation
    from quantenv.evaluation.preparing import calibrate_task
    from quantenv.tasks import get_task
    from quantenv.training import FinetuneConfig

    task = get_task("digits")
    return task, Allocation.make(task.layers, 4), FinetuneConfig(epochs=1, ema=0.9), calibrate_task(task)


def _make_finetuning(folder: Path, parts: Parts) -> Path:
    from quantenv.training import finetune

    task, allocation, recipe, _ = _finetuning()
    path = folder / "checkpoint.safetensors"
    steps = iter(range(100))

    def stop() -> None:
        if next(steps) == 4:
            raise KeyboardInterrupt

    try:
        finetune(task, allocation, recipe, checkpoint=path, between_steps=stop)
    except KeyboardInterrupt:
        return path
    raise AssertionError("it was not interrupted")


@cache
def _session() -> Any:
    from quantenv.training.parallel import Share
    from quantenv.training.qat.network import trainable_network
    from quantenv.training.session import Session

    task, allocation, recipe, calibration = _finetuning()
    kinds = recipe.weight_quantizer, recipe.activation_quantizer
    network = trainable_network(calibration, allocation, *kinds, live_norms=None)
    return Session(network, recipe, len(task.splits["train"]) // recipe.batch_size, Share("cpu"))


def _read_finetuning(path: Path) -> Any:
    from quantenv.training.checkpoint import Checkpoint

    task, allocation, recipe, _ = _finetuning()
    session = _session()
    if not Checkpoint(path, task, allocation, recipe).load(session):
        raise Damaged("of another fine-tuning: begun anew")
    return session.state()


def _pretraining() -> Any:
    from quantenv.tasks import Split
    from quantenv.training.pretrain import PretrainConfig, Pretraining

    images = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    recipe = PretrainConfig(epochs=3, batch_size=4, crop_padding=0)
    return Pretraining(_network(), Split(images, torch.arange(12) % 3), recipe)


def _make_pretraining(folder: Path, parts: Parts) -> Path:
    training = _pretraining()
    training.run_epoch()
    training.save(folder / "checkpoint.safetensors")
    return folder / "checkpoint.safetensors"


def _read_pretraining(path: Path) -> Any:
    training = _pretraining()
    training.restore(path)
    return training.state()


# Run folders ------------------------------------------------------------------------------------------------


def _of_run(file: str) -> Callable[[Path, Parts], Path]:
    def make(folder: Path, parts: Parts) -> Path:
        return Path(shutil.copytree(parts("run"), folder / "run")) / file

    return make


def _read_options(path: Path) -> Any:
    from experiments.runs.run_folder import RunFolder

    return RunFolder.open(path.parent).options()


def _read_episodes(path: Path) -> Any:
    from experiments.runs.run_folder import RunFolder

    return RunFolder.open(path.parent).read_episodes()


def _read_report(path: Path) -> Any:
    """Reads a run's folder as `quantenv report` does, and draws its page."""
    from experiments.reports.groups import group
    from experiments.reports.known import learn
    from experiments.reports.page import page
    from experiments.reports.sections import make_sections
    from experiments.reports.sources import read_folders

    sources = read_folders([str(path.parent)])
    groups = group(sources)
    settings = dict.fromkeys(case.setting for case in groups)
    known = {each: learn(each, [case for case in groups if case.setting == each], False) for each in settings}
    sections, short = make_sections(sources, groups, known, Path())
    return page("Report", "", sections), short


def _read_final_table(path: Path) -> Any:
    from experiments.runs.final_table import to_markdown
    from experiments.runs.run_folder import RunFolder

    return to_markdown(RunFolder.open(path.parent).read_report())


def _read_environment(path: Path) -> Any:
    from experiments.runs.provenance import changes, environment
    from experiments.runs.run_folder import RunFolder

    recorded = RunFolder(path.parent).read_environment()
    return recorded, list(changes(recorded, environment("", 1)))


def _read_top_k(path: Path) -> Any:
    from experiments.runs.run_folder import RunFolder

    return RunFolder(path.parent).read_top_k()


def _read_best(path: Path) -> Any:
    from quantenv.core.allocation import Allocation
    from quantenv.tasks import get_task

    return Allocation.load(path).check_fits(get_task("digits").layers)


def _read_resumed(path: Path) -> Any:
    """Reads all that `quantenv train --resume` reads of a finished run, by which it prints the table again."""
    from experiments.cli.main import main

    code = main(["train", "--resume", str(path.parent)])
    if code == 2:
        raise QuantenvError("refused by the command line")
    return code


# Benchmarks -------------------------------------------------------------------------------------------------


def _of_benchmark(pattern: str) -> Callable[[Path, Parts], Path]:
    def make(folder: Path, parts: Parts) -> Path:
        copy = Path(shutil.copytree(parts("benchmark"), folder / "benchmark"))
        return sorted(copy.glob(pattern))[0]

    return make


def _read_suite(path: Path) -> Any:
    from experiments.leaderboard.folder import BenchmarkFolder

    return BenchmarkFolder(path.parent).options()


def _read_results(path: Path) -> Any:
    from experiments.leaderboard.folder import BenchmarkFolder
    from experiments.leaderboard.results import load_results

    results = load_results(BenchmarkFolder.open(path.parent))
    return {key: (runs.found, runs.agent_seconds, runs.environment_seconds) for key, runs in results.runs.items()}


def _read_leaderboard(path: Path) -> Any:
    from experiments.leaderboard.folder import BenchmarkFolder

    return BenchmarkFolder(path.parent).read_leaderboard()


def _read_benchmark_environment(path: Path) -> Any:
    from experiments.leaderboard.folder import BenchmarkFolder

    return BenchmarkFolder(path.parent).read_environment()


def _read_evaluations(path: Path) -> Any:
    from experiments.leaderboard.folder import BenchmarkFolder

    return BenchmarkFolder(path.parent).read_evaluations().to_pydict()


def _read_part(path: Path) -> Any:
    """Reads a part as a benchmark does that goes on: what it was made under, its rows and its description."""
    from experiments.leaderboard.parquet import read_description, read_table

    file = path.with_name(path.name.removesuffix(".sha256"))
    return read_table(file).to_pydict(), read_description(file)


# Configurations ---------------------------------------------------------------------------------------------


def _make_config(folder: Path, parts: Parts) -> Path:
    text = "seed: 3\nagent: reinforce\nagent_options: {hidden: 8}\nbudget: 0.5\nqat: {epochs: 2, batch_size: 32}\n"
    (folder / "mine.yaml").write_text(text)
    return folder / "mine.yaml"


def _read_config(path: Path) -> Any:
    from experiments.options.parsing import parse_options
    from experiments.options.runs import TrainOptions

    return parse_options(TrainOptions, "train", ["--config", str(path)])


def _make_spaces(folder: Path, parts: Parts) -> Path:
    import experiments.configs as configs

    return Path(shutil.copy(Path(next(iter(configs.__path__))) / "spaces.yaml", folder / "spaces.yaml"))


def _read_spaces(path: Path) -> Any:
    from experiments.cli.search_options import TuneOptions
    from experiments.cli.tune import find_space

    return find_space(TuneOptions(agent="a2c", task="digits_table", space=str(path)))


def _make_cases(folder: Path, parts: Parts) -> Path:
    path = folder / "bench_x.json"
    path.write_text(json.dumps({"cases": {"a case": {"seconds": 1.5, "environment": {"cpu": "x"}}}}))
    return path


def _read_cases(path: Path) -> Any:
    from experiments.studies.harness import read_cases

    return read_cases(path.stem, str(path.parent))


def _make_tuning(folder: Path, parts: Parts) -> Path:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = f"sqlite:///{folder / 'tuning.sqlite'}"
    study = optuna.create_study(storage=storage, study_name="quantenv", direction="minimize")
    trial = study.ask({"hidden": optuna.distributions.IntDistribution(8, 64)})
    trial.set_user_attr("agent_options", {"hidden": 8})
    study.tell(trial, 0.25)
    study.set_user_attr("tuning", "{}")
    return folder / "tuning.sqlite"


def _read_tuning(path: Path) -> Any:
    from experiments.cli.tune import open_study

    study = open_study(path.parent)
    return study.user_attrs, [(trial.params, trial.values, trial.user_attrs) for trial in study.trials]


# Images -----------------------------------------------------------------------------------------------------


def _make_images(kind: str) -> Callable[[Path, Parts], Path]:
    def make(folder: Path, parts: Parts) -> Path:
        from PIL import Image

        from tests.tasks.images import write_images

        write_images(folder / "train", 2, 0, ("ant", "bee"))
        write_images(folder / "val", 2, 1, ("ant", "bee"))
        first = folder / "train" / "ant" / "000.png"
        if kind == "jpg":
            Image.open(first).save(first.with_suffix(".jpg"))
            first.unlink()
        return first.with_suffix(f".{kind}")

    return make


def _read_images(path: Path) -> Any:
    from quantenv.tasks.imagefolder import Images, _parts, preprocessing

    train, _, _ = _parts(path.parents[2])
    images = Images(train, preprocessing("tests.networks:branched", 16))
    return [images[index] for index in range(len(images))]


def _make_idx(folder: Path, parts: Parts) -> Path:
    from tests.tasks.data_sets import write_mnist

    return write_mnist(folder, train=20, test=20) / "MNIST" / "raw" / "train-images-idx3-ubyte"


def _read_idx(path: Path) -> Any:
    from quantenv.tasks.small_images import _read

    return _read("mnist", path.parents[2], True).tensors


def _make_jpegs(folder: Path, parts: Parts) -> Path:
    from PIL import Image

    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for index, part in enumerate(("train", "test", "train", "test", "train")):
            stream = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(stream, "JPEG")
            archive.writestr(f"{part}/{'ab'[index % 2]}/{index}.jpg", stream.getvalue())
    return folder / "images.zip"


def _read_jpegs(path: Path) -> Any:
    from quantenv.tasks.resnet20 import read_images

    return [(split.inputs, split.labels) for split in read_images(path)]


def _make_journal(folder: Path, parts: Parts) -> Path:
    from experiments.studies.fidelity import Journal, Measured
    from quantenv.evaluation import Evaluation

    journal = Journal(folder / "journal.json")
    journal.put("a key", Measured(Evaluation(7, 10, 0.5), 1.25))
    return folder / "journal.json"


def _read_journal(path: Path) -> Any:
    from experiments.studies.fidelity import Journal, Measured

    return Journal(path).get("a key", Measured)


def _make_shipped(folder: Path, parts: Parts) -> Path:
    from quantenv.core.tensor_file import WEIGHTS_FORMAT, write_tensors
    from quantenv.tasks.digits import DigitsNet

    write_tensors(folder / "digits.safetensors", WEIGHTS_FORMAT, {}, DigitsNet().state_dict())
    return folder / "digits.safetensors"


def _read_shipped(path: Path) -> Any:
    from unittest import mock

    from quantenv.tasks import shipped
    from quantenv.tasks.digits import DigitsNet

    with mock.patch.object(shipped, "weights_file", return_value=path):
        return shipped.shipped_network("digits", DigitsNet).state_dict()


def _make_prepared(folder: Path, parts: Parts) -> Path:
    from quantenv.quantization.calibrating import calibrate
    from quantenv.quantization.calibration import prepare
    from quantenv.quantization.prepared import About, Reference, write_prepared
    from quantenv.quantization.schemes import parse_scheme

    inputs = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    prepared = prepare(calibrate(_network().eval(), inputs, parse_scheme("linear+bias+batch-norm")))
    about = About("key", "task", "linear", {"search": Reference(1, 2, 0.5)}, {"id": {"x": [1.0]}}, ["note"])
    write_prepared(dataclasses.replace(prepared, about=about), folder / "prepared.safetensors")
    return folder / "prepared.safetensors"


def _read_prepared(path: Path) -> Any:
    from quantenv.quantization.prepared import read_prepared

    found = read_prepared(path)
    return found.layers, found.sites, found.tensors, str(found.about)


READERS: tuple[Reader, ...] = (
    Reader("allocation", "json", True, _make_allocation, _read_allocation),
    Reader("device", "yaml", False, _make_device, _read_device),
    Reader("look-up", "npy", False, _make_lookup, _read_lookup),
    Reader("problem", "json", False, _make_problem, _read_problem),
    Reader("table", "npz", True, _make_table, _read_table, 2),
    Reader("store", "sqlite", True, _make_store, _read_store, 0.5),
    Reader("store merge", "sqlite", True, _make_store, _read_merged, 0.5),
    Reader("store export", "jsonl", True, _make_export, _read_merged),
    Reader("measurements", "json", True, _make_measurements, _read_measurements),
    Reader("weights.pt", "torch", False, _make_weights, _read_weights),
    Reader("checkpoint of others", "torch", False, _make_nested_weights, _read_weights),
    Reader("weights.safetensors of others", "safetensors", False, _make_their_safetensors, _read_weights),
    Reader("weights.safetensors", "safetensors", True, _make_our_weights, _read_weights),
    Reader(
        "agent reinforce",
        "safetensors",
        True,
        _make_agent("reinforce"),
        _read_agent("reinforce", lambda a: a.policy.state_dict()),
    ),
    Reader(
        "agent ppo", "safetensors", True, _make_agent("ppo"), _read_agent("ppo", lambda a: a.model.policy.state_dict())
    ),
    Reader(
        "agent ddpg",
        "safetensors",
        True,
        _make_agent("ddpg"),
        _read_agent("ddpg", lambda a: (a.actor.state_dict(), a.critic.state_dict())),
    ),
    Reader("agent random", "safetensors", True, _make_agent("random"), _read_agent("random", lambda a: a._seed)),
    Reader("agent annealing", "safetensors", True, _make_annealing, _read_annealing),
    Reader("fine-tuning checkpoint", "safetensors", True, _make_finetuning, _read_finetuning),
    Reader("pretraining checkpoint", "safetensors", True, _make_pretraining, _read_pretraining),
    Reader("run config.yaml", "yaml", True, _of_run("config.yaml"), _read_options, 0.5),
    Reader("run environment.json", "json", True, _of_run("environment.json"), _read_environment),
    Reader("run episodes.jsonl", "jsonl", True, _of_run("episodes.jsonl"), _read_episodes),
    Reader("run top_k.json", "json", True, _of_run("top_k.json"), _read_top_k),
    Reader("run best.json", "json", True, _of_run("best.json"), _read_best),
    Reader("run agent.safetensors", "safetensors", True, _of_run("agent.safetensors"), _read_tensors, 0.3),
    Reader("run report.json", "json", True, _of_run("report.json"), _read_final_table),
    Reader("run report.json, drawn", "json", True, _of_run("report.json"), _read_report, 0.3),
    Reader("run resumed", "json", True, _of_run("report.json"), _read_resumed, 0.3),
    Reader("run finetuned.safetensors", "safetensors", True, _of_run("finetuned.safetensors"), _read_tensors, 0.3),
    Reader("benchmark suite.yaml", "yaml", True, _of_benchmark("suite.yaml"), _read_suite, 0.5),
    Reader("benchmark jobs.json", "json", True, _of_benchmark("jobs.json"), _read_results),
    Reader("benchmark leaderboard.json", "json", True, _of_benchmark("leaderboard.json"), _read_report, 0.15),
    Reader("benchmark leaderboard.json, alone", "json", True, _of_benchmark("leaderboard.json"), _read_leaderboard),
    Reader("benchmark curves.json", "json", True, _of_benchmark("curves.json"), _read_report, 0.15),
    Reader("benchmark environment.json", "json", True, _of_benchmark("environment.json"), _read_benchmark_environment),
    Reader("benchmark part", "parquet", True, _of_benchmark("parts/*.parquet"), _read_part),
    Reader("benchmark part's checksum", "text", True, _of_benchmark("parts/*.sha256"), _read_part, 0.3),
    Reader("benchmark evaluations", "parquet", True, _of_benchmark("evaluations.parquet"), _read_evaluations),
    Reader("benchmark results", "parquet", True, _of_benchmark("evaluations.parquet"), _read_results),
    Reader("--config", "yaml", False, _make_config, _read_config, 0.5),
    Reader("spaces of tune", "yaml", False, _make_spaces, _read_spaces),
    Reader("tuning.sqlite", "sqlite", False, _make_tuning, _read_tuning, 0.3),
    Reader("bench cases", "json", False, _make_cases, _read_cases),
    Reader("image png", "png", False, _make_images("png"), _read_images),
    Reader("image jpg", "bytes", False, _make_images("jpg"), _read_images),
    Reader("prepared network", "safetensors", True, _make_prepared, _read_prepared, 0.5),
    Reader("shipped weights", "safetensors", True, _make_shipped, _read_shipped, 0.5),
    Reader("journal of a benchmark", "json", True, _make_journal, _read_journal),
    Reader("archive of images", "zip", False, _make_jpegs, _read_jpegs),
    Reader("idx images", "bytes", False, _make_idx, _read_idx),
)
