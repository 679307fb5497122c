"""Where a task's prepared network comes from: given, shipped, kept from before, or made now and kept."""

import copy
import dataclasses
import functools
import logging
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import filelock
import torch
import torch.nn.functional as F

from quantenv.core.errors import QuantenvError
from quantenv.core.files import STORE_OFF, STORE_VARIABLE, content_hash, data_dir
from quantenv.core.locks import PREPARING
from quantenv.graph.identity import tensor_digest
from quantenv.quantization.calibrating import calibrate, restore
from quantenv.quantization.calibration import Calibration, prepare
from quantenv.quantization.input_rounding import note_of_rounded_inputs
from quantenv.quantization.prepared import FORMAT, About, PreparedNetwork, Reference, read_prepared, write_prepared
from quantenv.quantization.schemes import parse_scheme

if TYPE_CHECKING:
    from quantenv.tasks import Split, Task

logger = logging.getLogger(__name__)

#: Prepared networks that ship with the package.
SHIPPED = Path(__file__).parents[1] / "tasks" / "prepared"
#: Splits that the float network is evaluated on when a task is prepared, and digits of its loss that are kept.
REFERENCES, DIGITS = ("search", "test"), 6
BATCH = 64


def calibrate_task(task: "Task") -> Calibration:
    """Returns the calibration of a task's network, from its prepared network, once.

    That is the one the task brings, or else the one that ships with the package, or was kept when another process
    prepared it; if there is none it is prepared now and kept beside the default store, unless that is off.

    Raises:
        QuantenvError: If the task asks for an unknown quantization scheme, or brings what was prepared of another one,
            or the prepared network cannot be kept.
        UnsupportedLayerError: If the network cannot be quantized; see `quantenv.quantization.calibrating.calibrate`.
    """
    with PREPARING:
        return _calibrate_task(task)


@functools.lru_cache(maxsize=4)
def _calibrate_task(task: "Task") -> Calibration:
    scheme, prepared = parse_scheme(task.scheme), find_prepared(task)
    for note in prepared.about.notes:
        logger.warning("%s", note)
    return restore(task.network, task.splits["calibration"].inputs, prepared, scheme, task.channel_groups)


def key_of(task: "Task") -> str:
    """Hashes what a task's network is prepared from: what it computes, its calibration inputs and the scheme.

    Channel groups play no part: layers are prepared whole.
    """
    return content_hash([FORMAT, parse_scheme(task.scheme).version, task.calibrated_on])


def find_prepared(task: "Task") -> PreparedNetwork:
    """Finds or makes the prepared network of a task; see `calibrate_task`."""
    given: PreparedNetwork | None = task.prepared
    if given is not None:
        check_key(given, task)
        return given
    if (path := shipped_file(task)) is not None:
        return read_prepared(path)
    if (kept := prepared_folder()) is None:
        return make_prepared(task)
    if (found := _in_folder(kept, task)) is not None:
        return found
    with _alone(kept, key_of(task)):
        if (found := _in_folder(kept, task)) is not None:  # another process has made it meanwhile
            return found
        made = make_prepared(task)
        with _writable(kept):
            write_prepared(made, kept / file_name(task))
    return made


def shipped_file(task: "Task") -> Path | None:
    """Returns the file of a task's prepared network that ships with the package, if there is one."""
    return next(SHIPPED.glob(f"*-{key_of(task)}.safetensors"), None)


def file_name(task: "Task") -> str:
    """Returns the name of the file of a task's prepared network, which tells it from all others."""
    readable = re.sub(r"[^A-Za-z0-9+-]+", "_", f"{task.name}-{task.scheme}")
    return f"{readable[:100]}-{key_of(task)}.safetensors"


def prepared_folder() -> Path | None:
    """Returns where prepared networks are kept: beside the default store; None if that is off."""
    location = os.environ.get(STORE_VARIABLE)
    if location == STORE_OFF:
        return None
    if location and "://" not in location:
        return Path(location).expanduser().parent / "prepared"
    return data_dir() / "prepared"


def make_prepared(task: "Task") -> PreparedNetwork:
    """Prepares a task's network from scratch, and evaluates the float network.

    Raises:
        QuantenvError: If the network puts out NaN on the calibration inputs.
        UnsupportedLayerError: If it cannot be quantized.
    """
    split, scheme = task.splits["calibration"], parse_scheme(task.scheme)
    with torch.inference_mode(False), torch.no_grad():
        calibration = calibrate(task.network, split.inputs, scheme)
        note = note_of_rounded_inputs(calibration, split.labels)
        prepared = prepare(calibration)
        references = {name: _reference(task, task.splits[name]) for name in REFERENCES if name in task.splits}
    about = About(
        key=key_of(task),
        task=task.name,
        scheme=task.scheme,
        references={name: reference for name, reference in references.items() if reference is not None},
        notes=[] if note is None else [note],
        made={"torch": str(torch.__version__), "instructions": torch.backends.cpu.get_cpu_capability()},
    )
    return dataclasses.replace(prepared, about=about)


def check_key(prepared: PreparedNetwork, task: "Task") -> None:
    """Checks that a network was prepared for a task as it is.

    Raises:
        QuantenvError: If it was prepared for another one; the sentence says for what.
    """
    about = prepared.about
    if about.key != key_of(task):
        same = (about.task, about.scheme) == (task.name, task.scheme)
        raise QuantenvError(
            f"The prepared network was made for task {about.task!r} under scheme {about.scheme!r} (key {about.key}), "
            f"which is not {task.name!r} under {task.scheme!r} (key {key_of(task)})"
            f"{': weights or calibration images are others' if same else ''}. Leave it out, or make one with "
            "`quantenv prepare`."
        )


def bringing(task: "Task", prepared: PreparedNetwork) -> "Task":
    """Returns a task that brings its prepared network along: who gets it prepares none of its own.

    Raises:
        QuantenvError: If that is of another network or scheme.
    """
    check_key(prepared, task)  # which is computed here, and kept: the copy takes it along
    copied = copy.copy(task)
    object.__setattr__(copied, "prepared", prepared)
    return copied


def ships(prepared: PreparedNetwork, task: "Task") -> bool:
    """Whether these numbers of a task ship with the package."""
    path = shipped_file(task)
    return path is not None and read_prepared(path).content_hash == prepared.content_hash


def _reference(task: "Task", split: "Split") -> Reference | None:
    """Evaluates the float network; None if it puts out NaN or infinity, which is for evaluators to say."""
    correct, loss = 0, 0.0
    for inputs, labels in zip(split.inputs.split(BATCH), split.labels.split(BATCH), strict=True):
        logits = task.network(inputs).detach().double()
        correct += int((logits.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(logits, labels, reduction="sum"))
    loss /= len(split)
    if not math.isfinite(loss):
        return None
    return Reference(correct, len(split), round(loss, DIGITS), split_digest(split))


def split_digest(split: "Split") -> str:
    """Returns what tells a split from others: a hash of its inputs and labels."""
    return content_hash([tensor_digest(split.inputs), tensor_digest(split.labels)])


def _in_folder(folder: Path, task: "Task") -> PreparedNetwork | None:
    """Reads the prepared network of a task from a folder, if there is a sound one; a damaged one is moved aside."""
    for path in sorted(folder.glob(f"*-{key_of(task)}.safetensors")):
        try:
            found = read_prepared(path)
            check_key(found, task)
            return found
        except QuantenvError as error:
            aside = path.with_suffix(".damaged")
            path.replace(aside)
            logger.warning("%s Moved to %s, prepared anew.", error, aside.name)
    return None


@contextmanager
def _alone(folder: Path, key: str) -> Iterator[None]:
    """Keeps other processes from preparing the same while it is entered, after they have finished doing so."""
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / f".{key}.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            logger.warning("Another process prepares the same network; waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """Says in a sentence what the system raises within."""
    try:
        yield
    except OSError as error:
        raise QuantenvError(
            f"Cannot keep the prepared network in {folder}: {error.strerror}. Set {STORE_VARIABLE} to a path in a "
            "folder that can be written, or to 'off'."
        ) from error
