"""`quantenv pretrain`: trains a float network from scratch, on torchvision's small images or the user's."""

import copy
import dataclasses
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import datetime
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from experiments.options.console import announcements, results
from experiments.options.parsing import flatten, parse_options, read_options, write_options
from experiments.options.signals import GracefulStop, Interrupted
from experiments.options.task_source import with_absolute_paths
from experiments.options.tools import IMAGE_FOLDER, PretrainOptions
from experiments.runs.folder_lock import kept_folder
from experiments.runs.progress import ProgressView
from experiments.runs.run_folder import make_new
from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import WEIGHTS_FORMAT, write_tensors
from quantenv.evaluation.post_training import evaluate_logits
from quantenv.tasks import Task, check_source
from quantenv.tasks.imagefolder import imagefolder_of
from quantenv.tasks.small_images import DATA_SETS, DEFAULT_NETWORK, pretrained_file, random_network, task_of
from quantenv.training.pretrain import PretrainConfig, Pretraining

#: The task of the user's images.


def main(arguments: Sequence[str]) -> int:
    """Trains or continues.

    Args:
        arguments: The command line after ``pretrain``.

    Returns:
        Exit code: 0, or 128 + the signal's number if interrupted.

    Raises:
        QuantenvError: For a mistake in the options, data that cannot be had, or a damaged checkpoint.
    """
    options = parse_options(PretrainOptions, "pretrain", arguments)
    folder = None
    if options.resume is not None:
        folder = Path(options.resume)
        options = _resumed(options, folder, arguments)
    check_source(options.task, options.source)
    model = options.model or DEFAULT_NETWORK
    output = Path(options.output) if options.output else pretrained_file(options.task, model)
    if folder is None and output.exists():
        raise QuantenvError(f"There are weights in {output} already: remove them, or name another file by --output.")
    torch.set_num_threads(options.threads)
    task = _task(options, model)
    training = Pretraining(copy.deepcopy(task.network), task.splits["train"], _recipe(options))
    if folder is None:
        folder = _new_folder(options, model)
    with kept_folder(folder, "quantenv pretrain", f"`quantenv pretrain --resume {folder}`"):
        return _train_in(folder, training, task, options, model, output)


def _train_in(
    folder: Path, training: Pretraining, task: Task, options: PretrainOptions, model: str, output: Path
) -> int:
    """Trains in a folder, writes the weights and says how good they are; see `main`."""
    _load(training, folder)
    announcements().print(f"Folder: {folder}")
    try:
        with GracefulStop() as stop:
            train(training, task, options, folder, stop)
    except Interrupted as interruption:
        announcements().print(
            f"Interrupted after {training.epoch} of {options.epochs} epochs. Continue with: quantenv pretrain --resume "
            f"{folder}"
        )
        return interruption.exit_code
    network = training.network.cpu()
    write_tensors(output, WEIGHTS_FORMAT, {}, network.state_dict())
    test = evaluate_logits(network, task.splits["test"])
    results().print(
        f"{options.task}, {model}: test accuracy {test.accuracy:.2%} ({test.correct} of {test.samples}), cross-entropy "
        f"{test.loss:.4f}. Weights: {output}",
        soft_wrap=True,
    )
    return 0


def train(training: Pretraining, task: Task, options: PretrainOptions, folder: Path, stop: GracefulStop) -> None:
    """Trains to the last epoch, with a checkpoint, curves and a line of progress after each.

    Raises:
        Interrupted: If a signal came; the epoch at hand is lost.
    """
    with (
        SummaryWriter(str(folder), purge_step=training.epoch + 1) as board,
        ProgressView(announcements(), f"pretrain {task.name}", options.epochs) as view,
        closing(training.epochs(stop.check)) as epochs,
    ):
        started = time.perf_counter()
        for metrics in epochs:
            metrics["pretrain/images_per_second"] = len(task.splits["train"]) / (time.perf_counter() - started)
            held_out = evaluate_logits(copy.deepcopy(training.network).cpu(), task.splits["search"])
            metrics |= {"pretrain/search_accuracy": held_out.accuracy, "pretrain/search_loss": held_out.loss}
            training.save(_checkpoint(folder))
            for name, value in metrics.items():
                board.add_scalar(name, value, training.epoch)
            view.show(
                training.epoch,
                f"loss {metrics['pretrain/train_loss']:.4f}  search accuracy {held_out.accuracy:.2%}  "
                f"{metrics['pretrain/images_per_second']:.0f} images/s",
            )
            started = time.perf_counter()


def _task(options: PretrainOptions, model: str) -> Task:
    """Makes the task of a network with random weights; the same seed gives the same."""
    if options.task == IMAGE_FOLDER:
        return imagefolder_of(options.source, options.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = random_network(options.task, model)
    return task_of(options.task, options.source.data, network)


def _recipe(options: PretrainOptions) -> PretrainConfig:
    recipe = {field.name: getattr(options, field.name) for field in dataclasses.fields(PretrainConfig)}
    if options.flip is None:
        recipe["flip"] = options.task == IMAGE_FOLDER or DATA_SETS[options.task].flipped
    return PretrainConfig(**recipe)


def _new_folder(options: PretrainOptions, model: str) -> Path:
    parent = Path(options.runs) / options.task / "pretrain"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = make_new(parent, f"{model.replace(':', '.')}-{options.seed}-{datetime.now():%Y%m%d-%H%M%S}")
    except OSError as error:
        raise QuantenvError(f"Cannot make a folder in {parent}: {error.strerror}.") from error
    write_options(folder / "config.yaml", with_absolute_paths(options), "pretrain", "training")
    return folder


def _resumed(given: PretrainOptions, folder: Path, arguments: Sequence[str]) -> PretrainOptions:
    """Returns the options of a training that is to be continued; `given` are those of the command line's `arguments`.

    Raises:
        QuantenvError: If there is none, or others were given beside ``--resume``.
    """
    plain = flatten(parse_options(PretrainOptions, "pretrain", []))
    free = ("resume", "processes")
    other = [name for name, value in flatten(given).items() if name not in free and value != plain[name]]
    if other:
        raise QuantenvError(f"--resume continues a training with its own options: leave --{other[0]} out.")
    config = folder / "config.yaml"
    if not config.is_file():
        raise QuantenvError(f"{folder} is no folder of a training: it holds no {config.name}.")
    own = read_options(PretrainOptions, "pretrain", config, {})
    processes = parse_options(PretrainOptions, "pretrain", arguments, defaults={"processes": own.processes}).processes
    return dataclasses.replace(own, processes=processes)


def _load(training: Pretraining, folder: Path) -> None:
    """Takes the checkpoint of a folder, if it came as far as having one."""
    path = _checkpoint(folder)
    if path.exists():
        training.restore(path)
    elif path.with_suffix(".pt").exists():
        raise QuantenvError(
            f"{path.with_suffix('.pt')} is of an earlier version of quantenv, which is not read any more: remove it to "
            "begin anew."
        )


def _checkpoint(folder: Path) -> Path:
    return folder / "checkpoint.safetensors"
