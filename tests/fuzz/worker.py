"""A process that gives mutants to readers, under a limit of memory and of time for each, and says what came of it.

    python -m tests.fuzz.worker SAMPLES SEED NAME:FIRST:COUNT ...

A line of JSON for each mutant, and for each reader at its end; a process that dies has said up to where it came.
"""

import contextlib
import dataclasses
import io
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any, TextIO

import msgspec
import numpy as np
import torch

from quantenv.core.errors import QuantenvError
from quantenv.core.files import content_hash
from tests.fuzz.readers import READERS, Damaged, Reader
from tests.fuzz.structures import NAME, mutate

#: Seconds of the processor for one mutant, and bytes of memory beyond what the process has when it begins.
SECONDS, MEMORY = 10, 3 << 30


class TooLong(BaseException):
    """A mutant took longer than `SECONDS`."""


def fingerprint(content: Any) -> str:
    """Hashes what a reader returns, so that two equal hashes mean equal content."""
    digest: list[bytes | str] = []
    _collect(content, digest)
    return content_hash(digest)


def _collect(content: Any, into: list[bytes | str]) -> None:
    into.append(type(content).__name__)
    if isinstance(content, torch.Tensor):
        flat = content.detach().contiguous().reshape(-1)
        into += [str(content.dtype), str(tuple(content.shape)), flat.view(torch.uint8).numpy().tobytes()]
    elif isinstance(content, np.ndarray):
        into += [content.dtype.str, str(content.shape), np.ascontiguousarray(content).tobytes()]
    elif dataclasses.is_dataclass(content) and not isinstance(content, type):
        _collect({field.name: getattr(content, field.name) for field in dataclasses.fields(content)}, into)
    elif isinstance(content, msgspec.Struct):
        _collect(msgspec.structs.asdict(content), into)
    elif isinstance(content, dict):
        for key in sorted(content, key=repr):
            into.append(repr(key))
            _collect(content[key], into)
    elif isinstance(content, list | tuple):
        for item in content:
            _collect(item, into)
    else:
        into.append(repr(content))


def main(arguments: list[str]) -> None:
    """Tries mutants; see the module."""
    samples, seed, *wanted = arguments
    say = os.fdopen(os.dup(1), "w", buffering=1)
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    warnings.simplefilter("ignore")
    logging.disable()
    torch.set_num_threads(1)
    readers = {reader.name: reader for reader in READERS}
    signal.signal(signal.SIGPROF, _too_long)
    for each in wanted:
        name, first, count = each.rsplit(":", 2)
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)  # payloads that ran would touch a file here
            _try(readers[name], Path(samples), seed, range(int(first), int(first) + int(count)), say)
            os.chdir("/")


def _try(reader: Reader, samples: Path, seed: str, numbers: range, say: TextIO) -> None:
    source = samples / reader.name.replace("/", "_")
    file = (source / "file").read_text()
    place = Path("sample").absolute()
    sound = (source / "sample" / file).read_bytes()
    _restore(source / "sample", place)
    expected = fingerprint(reader.read(place / file))
    _limit_memory()
    _restore(source / "sample", place)
    before, began = _peak(reset=True), time.perf_counter()
    for number in numbers:
        print(json.dumps({"reader": reader.name, "begun": number}), file=say)
        mutant = mutate(reader.form, sound, random.Random(f"{seed} {reader.name} {number}"))
        path = place / file
        path.write_bytes(mutant.content)
        for suffix, content in (mutant.beside or {}).items():
            text = content.decode().replace(NAME, path.name)
            path.with_name(path.name + suffix).write_text(text)
        outcome, detail = _outcome(reader, path, expected, mutant.forged)
        if list(Path.cwd().rglob("PWNED")):
            outcome, detail = "ran code", ""
        print(json.dumps({"reader": reader.name, "number": number, "outcome": outcome, "detail": detail}), file=say)
        _restore(source / "sample", place)
    seconds = time.perf_counter() - began
    print(json.dumps({"reader": reader.name, "peak": _peak() - before, "seconds": seconds}), file=say)


def _restore(source: Path, place: Path) -> None:
    """Makes the sample's folder as it was; files that are the same stay."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(source, place)


def _outcome(reader: Reader, path: Path, expected: str, forged: bool) -> tuple[str, str]:
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found = fingerprint(reader.read(path))
    except Damaged:
        return "refused", ""
    except QuantenvError as error:
        return ("refused", "") if _is_a_sentence(str(error)) else ("raw error", f"no sentence: {str(error)[:300]!r}")
    except TooLong as error:
        return "hang", _where(error)
    except BaseException as error:
        return "raw error", _where(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    if found == expected:
        return "equal", ""
    return ("accepted" if forged or not reader.own else "accepted change"), ""


def _is_a_sentence(text: str) -> bool:
    """Whether a message can stand on one screen: no line breaks, no control characters, not endless."""
    return 10 < len(text) < 2500 and text.isprintable()


def _where(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/fuzz/" not in frame.filename]
    last = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[-3:]]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:150]} at {' > '.join(last)}"


def _too_long(*_: object) -> None:
    raise TooLong


def _limit_memory() -> None:
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _peak(reset: bool = False) -> int:
    """Returns the largest memory that this process has had since the last reset, in bytes."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(sys.argv[1:])
