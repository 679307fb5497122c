"""What the result of a search depends on, hashed: a search is run again only if this changed."""

import ast
import functools
import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import quantenv
from agents.base import BUILT_IN, ENTRY_POINTS
from experiments.leaderboard.suite import Job
from quantenv.core.files import content_hash
from quantenv.evaluation.table.evaluation_table import EvaluationTable
from quantenv.evaluation.table.shipped import resolve_task

#: Modules of `experiments` that a search passes through.
PATH_OF_A_SEARCH = (
    "experiments.leaderboard.jobs",
    "experiments.leaderboard.suite",
    "experiments.runs.episodes",
    "experiments.options.runs",
    "experiments.runs.recorder",
    "experiments.runs.parts",
)


def job_key(job: Job, task_hash: str, versions: Mapping[str, Any]) -> str:
    """Hashes all that a search's result depends on.

    Args:
        job: The search.
        task_hash: See `task_hash`.
        versions: Versions of Python and of the packages that can change a number.

    Returns:
        The hash of the job, the contents of its task, the versions, and the source of `quantenv` and of the agent
        with everything of its own package that it imports.
    """
    return content_hash(
        [
            json.dumps(asdict(job), sort_keys=True),
            task_hash,
            json.dumps(dict(versions), sort_keys=True),
            _environment_source(),
            agent_source(job.agent),
        ]
    )


def task_hash(name: str) -> str:
    """Returns the content hash of a task or table; a network that was not trained yet is."""
    task = resolve_task(name)
    return task.hash if isinstance(task, EvaluationTable) else task.identity


@functools.cache
def agent_source(name: str) -> str:
    """Hashes the source files of an agent: its module and what that imports of `agents` and its own package."""
    target = BUILT_IN.get(name) or next(entry.value for entry in entry_points(group=ENTRY_POINTS) if entry.name == name)
    module = target.partition(":")[0]
    return _source_hash(_closure(module, {"agents", module.partition(".")[0]}))


@functools.cache
def _environment_source() -> str:
    root = Path(quantenv.__file__).parent
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.suffix in (".py", ".yaml")}
    return _source_hash(files | {name: path for name in PATH_OF_A_SEARCH if (path := _source(name))})


def _source_hash(files: Mapping[str, Path]) -> str:
    return content_hash([part for name, path in sorted(files.items()) for part in (name, path.read_bytes())])


def _closure(module: str, packages: set[str]) -> dict[str, Path]:
    """Finds the files of a module and of what it imports of some packages, whether at once or later."""
    found: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in found or (path := _source(name)) is None:
            continue
        found[name] = path
        waiting += [other for other in _imported(path) if other.partition(".")[0] in packages]
    return found


def _imported(path: Path) -> Iterator[str]:
    """Yields what a file imports; of ``from package import name`` both, since the name may be a module."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _source(module: str) -> Path | None:
    """Returns a module's source file, if there is one."""
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # a function or class, not a module: its parent is no package
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
