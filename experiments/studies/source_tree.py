"""Hashes of the code behind a module: what it imports of our own packages, in what computes and not in prose.

Imports are read from the source, at the top of a module or within a function; texts that name a module, as in
``"quantenv.evaluation.post_training:PTQEvaluator"``, count as imports, those under ``if TYPE_CHECKING`` do not. A hash
is of the syntax tree without docstrings and comments, so that neither prose nor layout moves it, and the same for every
Python.
"""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantenv.core.files import content_hash
from quantenv.core.plain_yaml import load_plain

_NAMED = re.compile(r"[a-z_]\w*(\.\w+)+(:\w+)?")


@dataclass(frozen=True)
class SourceTree:
    """Packages under one folder."""

    root: Path
    """The folder."""
    packages: tuple[str, ...] = ("quantenv", "agents", "experiments")
    """Top-level packages that are our own."""
    registries: tuple[str, ...] = ("agents.base",)
    """Modules that name others in texts without needing them."""

    def file(self, module: str) -> Path | None:
        """Returns a module's file; None if it is no module of these packages."""
        if module.partition(".")[0] not in self.packages:
            return None
        path = self.root.joinpath(*module.split("."))
        for file in (path / "__init__.py", path.with_suffix(".py")):
            if file.is_file():
                return file
        return None

    def behind(self, modules: Sequence[str], without: Sequence[str] = ()) -> dict[str, Path]:
        """Finds modules and all that they import, one through another.

        Args:
            modules: Where to begin.
            without: Modules and packages that are left out, with what only they import.

        Returns:
            Files by module.
        """
        found: dict[str, Path] = {}
        waiting = list(modules)
        while waiting:
            module = waiting.pop()
            file = self.file(module)
            if module in found or file is None or is_within(module, without):
                continue
            found[module] = file
            waiting += _imported(file, texts=module not in self.registries)
        return found

    def hashes(self, modules: Sequence[str], without: Sequence[str] = ()) -> dict[str, str]:
        """Hashes the code behind modules, with the YAML files that lie beside it; see `behind` for the arguments.

        Returns:
            A hash for each package.
        """
        packages: dict[str, dict[str, str]] = {}
        for module, file in self.behind(modules, without).items():
            package = ".".join(file.parent.relative_to(self.root).parts)
            parts = packages.setdefault(package, {})
            parts[module] = _code_hash(file)
            parts |= {path.name: yaml_hash(path) for path in sorted(file.parent.glob("*.yaml"))}
        return {
            package: content_hash(part for item in sorted(parts.items()) for part in item)
            for package, parts in sorted(packages.items())
        }


def is_within(module: str, packages: Sequence[str]) -> bool:
    """Whether a module is one of some modules and packages, or lies in one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def yaml_hash(path: Path) -> str:
    """Hashes what a YAML file says, without its comments."""
    return content_hash([json.dumps(load_plain(path.read_text()), sort_keys=True)])


def _imported(file: Path, texts: bool) -> frozenset[str]:
    """Returns what a file imports, or names in texts; ``from package import name`` may import a module."""
    imported, named, _ = _read(file, file.stat().st_mtime_ns)
    return imported | named if texts else imported


def _code_hash(file: Path) -> str:
    return _read(file, file.stat().st_mtime_ns)[2]


@functools.cache
def _read(file: Path, stamp: int) -> tuple[frozenset[str], frozenset[str], str]:
    """Returns what a file imports, what modules its texts name, and the hash of its code."""
    tree = ast.parse(file.read_text())
    imported: set[str] = set()
    named: set[str] = set()
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            imported |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAMED.fullmatch(node.value):
            named.add(node.value.partition(":")[0])
        waiting += [child for child in ast.iter_child_nodes(node) if not _is_prose(child)]
    digest = hashlib.sha256("\0".join(_texts(tree)).encode("utf-8", "surrogatepass"))
    return frozenset(imported), frozenset(named), digest.hexdigest()[:16]


def _texts(node: Any) -> Iterator[str]:
    """Yields a syntax tree as texts; fields that are empty are left out, of which later Pythons have more."""
    if isinstance(node, ast.AST):
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if value not in (None, [], ()) and name not in ("ctx", "kind", "type_comment"):
                yield name
                yield from _texts(_joined(value) if isinstance(node, ast.JoinedStr) else value)
        yield ")"
    elif isinstance(node, list):
        yield "["
        for each in node:
            if not _is_prose(each):
                yield from _texts(each)
        yield "]"
    else:
        yield repr(node)


def _is_prose(node: Any) -> bool:
    """Whether a node is a docstring, or another text that stands for itself."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _joined(values: list[Any]) -> list[Any]:
    """Joins neighbouring texts of an f-string, and drops empty ones: some Pythons keep them apart or add them."""
    joined: list[Any] = []
    for value in values:
        if isinstance(value, ast.Constant) and value.value == "":
            continue
        before = joined[-1] if joined else None
        if isinstance(value, ast.Constant) and isinstance(before, ast.Constant):
            joined[-1] = ast.Constant(str(before.value) + str(value.value))
        else:
            joined.append(value)
    return joined
