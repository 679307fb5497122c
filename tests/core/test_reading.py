import ast
import json
import os
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

import agents
import experiments
import quantenv
from quantenv.core.errors import AllocationError, QuantenvError
from quantenv.core.reading import LINE_LIMIT, Schema, fit, parse_json, read_bytes, read_json, read_json_lines, read_yaml


class Layer(Schema, frozen=True):
    name: str
    bits: Annotated[int, msgspec.Meta(ge=1, le=8)]


class Content(Schema, frozen=True):
    format: Literal["x-1"]
    layers: Annotated[list[Layer], msgspec.Meta(min_length=1)]
    costs: dict[str, Annotated[float, msgspec.Meta(ge=0)]] = msgspec.field(default_factory=dict)
    pairs: dict[str, tuple[tuple[int, int], ...]] = msgspec.field(default_factory=dict)
    note: str | None = None


SOUND = {"format": "x-1", "layers": [{"name": "a", "bits": 3}]}

#: What else stands in the file, and what is said of it.
MISFITS = [
    ({"format": "y"}, "format is 'y'; expected 'x-1'"),
    ({"layers": []}, "layers has 0 entries; expected at least 1"),
    ({"layers": [{"name": "a", "bits": 4.9}]}, r"layers\[0\].bits is 4.9; expected a whole number"),
    ({"layers": [{"name": "a", "bits": 4.0}]}, r"layers\[0\].bits is 4.0; expected a whole number"),
    ({"layers": [{"name": "a", "bits": "4"}]}, r"layers\[0\].bits is '4'; expected a whole number"),
    ({"layers": [{"name": "a", "bits": True}]}, r"layers\[0\].bits is true; expected a whole number"),
    ({"layers": [{"name": "a", "bits": None}]}, r"layers\[0\].bits is null; expected a whole number"),
    ({"layers": [{"name": "a", "bits": 8_000_000}]}, "is 8000000; expected a whole number of at most 8"),
    ({"layers": [{"name": "a"}]}, r"lacks the key 'layers\[0\].bits'"),
    ({"layers": [{"name": "a", "bitz": 1}]}, r"unknown key 'layers\[0\].bitz'; perhaps 'bits' is meant"),
    ({"layer": []}, "unknown key 'layer'; perhaps 'layers' is meant"),
    ({"costs": {"size": 1.0, "a b": -1.0}}, r"costs\['a b'\] is -1.0; expected a number of at least 0"),
    ({"costs": {"size": "0.5"}}, "costs.size is '0.5'; expected a number"),
    ({"costs": {"size": True}}, "costs.size is true; expected a number"),
    ({"pairs": {"a": [[1, 2]], "b": [[3, 4], [5, False]]}}, r"pairs.b\[1\]\[1\] is false; expected a whole number"),
    ({"pairs": {"a": [[1, 2, 3]]}}, r"pairs.a\[0\] has 3 entries; expected 2"),
    ({"x` - at `$.a[5].b[...]": 1}, "unknown key"),
    ({"x` - at `key` in `$.a": 1}, "does not fit|unknown key"),
    ({"x` - at `$[...][7]": 1}, "unknown key"),
    ({"x\n" * 1000: 1}, "unknown key"),
    ({"format": "y` - at `$.layers[9]"}, "expected 'x-1'|a known value"),
    ({"note": 5}, "note is 5; expected text or null"),
    ({"note": ["x" * 10_000]}, r"note is \['xxx.* \.\.\.; expected text or null"),
]

#: What is no sound JSON, and what is said of it.
UNSOUND = {
    "[" * 5000: "more than 64 deep",
    '{"a":' * 5000: "more than 64 deep",
    "[" * 65 + "]" * 65: "more than 64 deep",
    '{"a": 1, "b": {"c": 1, "c": 1}}': "has the key 'c' twice",
    "[NaN]": "holds NaN",
    "[-Infinity]": "holds -Infinity",
    "[1e999]": "the number '1e999', which is out of range",
    f"[{'9' * 5000}]": "a whole number of 5000 digits; expected at most 20",
    '["\\ud800"]': "half a character",
    '["\\u0000"]': "control character",
    '["\\u001b[2J"]': "control character",
    "": "not JSON, or is truncated",
    '{"a": 1': "not JSON, or is truncated: .* line 1, column 8",
    "[1] [2]": "not JSON",
}


def _write(folder, content):
    path = folder / "file.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_what_fits_is_read(tmp_path):
    content = read_json(_write(tmp_path, {**SOUND, "costs": {"size": 1}, "note": "😀 [[["}), Content)
    assert content.layers == [Layer(name="a", bits=3)]
    assert content.costs == {"size": 1.0}
    assert content.note == "😀 [[["


@pytest.mark.parametrize(("change", "said"), MISFITS, ids=[str(change)[:40] for change, _ in MISFITS])
def test_a_misfit_names_file_key_and_value(tmp_path, change, said):
    path = _write(tmp_path, {**SOUND, **change})
    with pytest.raises(AllocationError, match=said) as error:
        read_json(path, Content, what="allocation file", error=AllocationError)
    assert str(error.value).startswith(f"The allocation file {path} ")
    assert len(str(error.value)) < len(str(path)) + 200


def test_the_entry_that_does_not_fit_is_found_among_many():
    costs = {f"c{number}": 1.0 for number in range(50_000)} | {"bad": "x", "worse": "y"}
    with pytest.raises(QuantenvError, match=r"costs\.bad is 'x'; expected a number"):
        fit({**SOUND, "costs": costs}, Content, "The file x")


@pytest.mark.parametrize("content", [None, 3, [], "text"])
def test_another_kind_of_content_is_refused(content):
    with pytest.raises(QuantenvError, match=r"its content is .*; expected names with values"):
        fit(content, Content, "The file x")


def test_a_missing_format_is_refused():
    with pytest.raises(QuantenvError, match="lacks the key 'format'"):
        fit({"layers": SOUND["layers"]}, Content, "The file x")


@pytest.mark.parametrize(("text", "said"), UNSOUND.items(), ids=[text[:20] for text in UNSOUND])
def test_unsound_json_is_one_sentence(text, said):
    with pytest.raises(QuantenvError, match=said) as error:
        parse_json(text, "The file x.json")
    assert len(str(error.value)) < 200


def test_brackets_in_texts_do_not_nest():
    text = json.dumps(["[" * 5000, '\\"' + "{" * 5000, *([1],) * 200])
    assert parse_json(text, "x") == json.loads(text)


@pytest.mark.parametrize("text", ['"' * 1_000_000, '"' + '\\"' * 500_000, "[" * 1_000_000, '{"a":"\\' * 150_000])
def test_hostile_json_takes_linear_time(text):
    with pytest.raises(QuantenvError):  # quadratic time would be minutes
        parse_json(text, "x")


def test_text_that_is_not_utf_8_is_refused(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_bytes(b"a: \xff")
    with pytest.raises(QuantenvError, match=r"not UTF-8 text \(byte 3\)"):
        read_yaml(path, dict)


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b" " * 101)
    assert len(read_bytes(path, limit=101)) == 101
    with pytest.raises(QuantenvError, match="larger than 100 bytes"):
        read_json(path, dict, limit=100)


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    for path, said in {
        tmp_path / "pipe": "it is a pipe, socket or device; expected a file",
        tmp_path: "it is a folder; expected a file",
        "/dev/zero": "a pipe, socket or device",
        tmp_path / "none": "No such file",
        "a\0b": "no path holds such a character",
        "a" * 5000: "File name too long",
    }.items():
        for read in (read_json, read_yaml, lambda *given: list(read_json_lines(*given))):
            with pytest.raises(QuantenvError, match=said):
                read(path, dict)


def test_lines_are_read_one_by_one(tmp_path):
    path = _write(tmp_path, '{"name": "a", "bits": 1}\n{"name": "b", "bits": 2}\n')
    assert [layer.bits for layer in read_json_lines(path, Layer)] == [1, 2]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"name": "a", "bits": 4.9}\n', "line 2, does not fit: bits is 4.9"),
        ("\n", "line 2, is not JSON"),
        ('{"name": "a", "bits": 1}', "line 2, has no end: the file is truncated"),
        (" " * LINE_LIMIT + "\n", "line 2, is longer than"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, said):
    lines = read_json_lines(_write(tmp_path, '{"name": "a", "bits": 1}\n' + line), Layer)
    assert next(lines).bits == 1
    with pytest.raises(QuantenvError, match=said):
        next(lines)


def test_yaml_is_held_to_the_same_schema(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: a\nbits: 3\n")
    assert read_yaml(path, Layer) == Layer(name="a", bits=3)
    path.write_text("name: a\nbits: 3\nbits: 4\n")
    with pytest.raises(QuantenvError, match="is not plain YAML: line 3, column 1: the key 'bits' stands twice"):
        read_yaml(path, Layer)
    path.write_text("name: a\nbits: '3'\n")
    with pytest.raises(QuantenvError, match="bits is '3'; expected a whole number"):
        read_yaml(path, Layer)
    path.write_text("")
    with pytest.raises(QuantenvError, match="its content is null"):
        read_yaml(path, Layer)


#: Calls that parse files, and where they may stand: the reading layer, and where what is read is ours already.
PARSERS = re.compile(
    r"(json|yaml|pickle|marshal|csv|tomllib|np|numpy|torch)\.(load|loads|\w*_load|load_all|loadtxt|genfromtxt|fromfile|reader)"
)
MAY_PARSE = {
    "quantenv/core/reading.py": "the layer itself",
    "quantenv/core/tensor_file.py": "the header of safetensors, bounded, whose every text counts in the checksum",
    "quantenv/core/weight_files.py": "weights without pickled objects, within bounds",
    "quantenv/training/parallel.py": "what processes of one training hand each other",
    "quantenv/evaluation/pool/pool.py": "what a process hands those it starts",
    "experiments/studies/bench_rows.py": "what it and the process that it starts hand each other",
    "experiments/runs/episodes.py": "the last line of a file that was read before",
    "experiments/runs/folder_lock.py": "a note of 4,096 bytes that is only shown",
    "experiments/studies/peers/run.py": "its own command line, which its parent process wrote",
    "experiments/cli/tune.py": "a text that was parsed and found sound when the study was opened",
}


def test_every_file_is_read_by_the_layer():
    """So that a reader of a new kind of file cannot forget bounds and schema."""
    found = {}
    for package in (quantenv, agents, experiments):
        folder = Path(package.__file__).parent
        for file in folder.rglob("*.py"):
            text = file.read_text()
            if not PARSERS.search(text):  # to look through its syntax would take long
                continue
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            parsers = {name for name in map(ast.unparse, (call.func for call in calls)) if PARSERS.fullmatch(name)}
            if parsers:
                found[str(file.relative_to(folder.parent))] = parsers
    assert set(found) == set(MAY_PARSE), found
