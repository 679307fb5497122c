"""Changes of our own files with right checksums: what somebody does who means it, not what damage does."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml

from quantenv.core.records import COMMENT, KEY, sealed, with_comment, write_record


def change_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file's content in place."""
    content = json.loads(path.read_text())
    del content[KEY]
    change(content)
    write_record(path, content)


def change_lines(path: Path, change: Callable[[int, dict[str, Any]], object]) -> None:
    """Changes the lines of an episode file in place; they are numbered from 1."""
    contents = [json.loads(line) for line in path.read_text().splitlines()]
    for number, content in enumerate(contents, start=1):
        del content[KEY]
        change(number, content)
    write_lines(path, contents)


def write_lines(path: Path, contents: Iterable[dict[str, Any]]) -> None:
    """Writes an episode file."""
    before, lines = "", []
    for content in contents:
        line = sealed(content, before)
        lines.append(json.dumps(line) + "\n")
        before = line[KEY]
    path.write_text("".join(lines))


def change_config(path: Path, **changes: Any) -> None:
    """Changes options in a folder's YAML file in place."""
    text = path.read_text().rpartition(COMMENT)[0]
    path.write_text(with_comment(yaml.safe_dump(yaml.safe_load(text) | changes)))
