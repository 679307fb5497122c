"""Running the command of a recorded result: where it works, what it needs, and what becomes of the files it writes."""

import ctypes
import importlib.util
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.studies.recorded import DATA_VARIABLE, Recorded, located
from quantenv.core.errors import QuantenvError
from quantenv.core.files import CACHE_VARIABLE, STORE_OFF, STORE_VARIABLE, content_hash, write_atomically

#: Folder of files that a command begins anew, until it has succeeded.
ASIDE = "before"


class CommandFailed(QuantenvError):
    """A result's command failed, or left no files."""


def obstacle(recorded: Recorded, root: Path, data: Path | None) -> str | None:
    """Says what a result's command lacks here; None if nothing.

    Args:
        recorded: The result.
        root: Folder of the repository.
        data: ``$QUANTENV_DATA``, None if it is not set.
    """
    if recorded.data and data is None:
        return f"${DATA_VARIABLE} is not set, and it needs {' and '.join(recorded.data)} of it"
    for name in recorded.data:
        if data is not None and not (data / name).is_file():
            return f"${DATA_VARIABLE} has no {name}"
    for name in recorded.reads:
        if not located(root, name).is_file():
            return f"{name} is missing"
    if recorded.environment is not None:
        return None if _python(recorded, root).is_file() else f"there is no {recorded.environment}: see the Makefile"
    for name in recorded.needs:
        if importlib.util.find_spec(name) is None:
            return f"{name} is not installed: see the extras in pyproject.toml"
    return None


def run(recorded: Recorded, root: Path, work: Path, inputs: Mapping[str, str], anew: bool) -> str:
    """Runs a result's command, in a folder of its own that a command of the same inputs finds again.

    Its cache lies in that folder too, and the store is off, so that nothing computed by other code takes part. The
    folder is deleted when the command has succeeded.

    Args:
        recorded: The result.
        root: Folder of the repository, in which the command runs.
        work: Folder of such folders.
        inputs: What it depends on, hashed.
        anew: Whether files that it would add to are moved away first; they come back if the command fails.

    Returns:
        The command.

    Raises:
        CommandFailed: If it fails, or does not leave the files that it is to make.
    """
    own = work / f"{'-'.join(recorded.name.split())}-{content_hash([json.dumps(inputs, sort_keys=True)])}"
    own.mkdir(parents=True, exist_ok=True)
    data = os.environ.get(DATA_VARIABLE, "")
    arguments = [
        each.replace("{work}", str(own.relative_to(root))).replace("{data}", data) for each in recorded.arguments
    ]
    variables = {
        **os.environ,
        **recorded.variables,
        STORE_VARIABLE: STORE_OFF,
        CACHE_VARIABLE: str(own / "cache"),
        "PYTHONPATH": str(root),
    }
    moved = _move_aside(recorded, root, own) if anew and recorded.gathers else []
    try:
        code = _code_of([str(_python(recorded, root)), *arguments], root, variables)
        if code:
            raise CommandFailed(f"its command ended with exit code {code}")
        for pattern, name in recorded.copies.items():
            _copy(root, pattern.replace("{work}", str(own.relative_to(root))), root / name)
        for name in recorded.files:
            if not located(root, name).is_file():
                raise CommandFailed(f"its command did not write {name}")
    except BaseException:
        for name in moved:
            if not (root / name).is_file():
                os.replace(own / ASIDE / name, root / name)
        raise
    shutil.rmtree(own)
    chosen = [f"{name}={value}" for name, value in recorded.variables.items()]
    return " ".join([*chosen, "python", *(shlex.quote(each) for each in recorded.arguments)])


def _python(recorded: Recorded, root: Path) -> Path:
    """Returns the interpreter that a result's command runs in."""
    return Path(sys.executable) if recorded.environment is None else root / recorded.environment / "bin" / "python"


def _code_of(command: Sequence[str], root: Path, variables: Mapping[str, str]) -> int:
    """Runs a command to its end and returns its exit code; what interrupts this process ends it, too."""
    process = subprocess.Popen(command, cwd=root, env=variables, preexec_fn=_end_with_parent)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _end_with_parent() -> None:
    """Has a command ended when this process is killed, where the system can (prctl with PR_SET_PDEATHSIG)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def _move_aside(recorded: Recorded, root: Path, own: Path) -> list[str]:
    """Moves a result's files away, so that nothing of what they hold is taken over, and returns which."""
    there = [name for name in recorded.files if (root / name).is_file()]
    for name in there:
        aside = own / ASIDE / name
        aside.parent.mkdir(parents=True, exist_ok=True)
        os.replace(root / name, aside)
    return there


def _copy(root: Path, pattern: str, target: Path) -> None:
    """Copies the file that a command left under a name, the newest if it was stopped before and has left several."""
    found = sorted(root.glob(pattern), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise CommandFailed(f"its command left no file {pattern}")
    content = found[-1].read_bytes()
    write_atomically(target, lambda file: file.write(content))
