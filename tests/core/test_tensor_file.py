"""Files of tensors: what is read is what was written, or it is refused."""

import json
import os
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from quantenv.core.errors import QuantenvError
from quantenv.core.tensor_file import read_tensors, write_tensors
from quantenv.core.weight_files import open_tensors

KIND = "quantenv-test-1"
ABOUT = {"name": "ä", "loss": 0.1 + 0.2, "nothing": None, "worst": float("inf"), "list": [1, {"deep": True}]}


def tensors():
    shared = torch.arange(6.0)
    return {
        "matrix": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        "turned": torch.arange(6).reshape(2, 3).T,
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, dtype=torch.int64),
        "truth": torch.tensor([True, False]),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "half": torch.ones(2, dtype=torch.bfloat16) / 3,
        "double": torch.tensor([1 / 3, torch.nan], dtype=torch.float64),
        "channels last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "all": shared,
        "part": shared[2:],
        "parameter": torch.nn.Parameter(torch.zeros(2)),
    }


@pytest.fixture
def path(tmp_path):
    write_tensors(tmp_path / "a.safetensors", KIND, ABOUT, tensors() | {"channels last": torch.zeros(1)})
    return tmp_path / "a.safetensors"


def read(path):
    return read_tensors(path, KIND, "a test's file", "Make it again.")


def test_what_is_written_is_read_to_the_bit(tmp_path):
    written = tensors()
    write_tensors(tmp_path / "made" / "a", KIND, ABOUT, written)
    about, found = read(tmp_path / "made" / "a")
    assert about == ABOUT
    assert found.keys() == written.keys() == safetensors.torch.load_file(tmp_path / "made" / "a").keys()
    for name, value in written.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name].nan_to_num(7), value.detach().nan_to_num(7))
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["a"]


def test_the_same_content_makes_the_same_bytes_in_every_process(tmp_path):
    write_tensors(tmp_path / "a", KIND, {"b": 1, "a": 2}, {"x": torch.ones(2), "w": torch.zeros(3)})
    code = (
        "import sys, torch; from pathlib import Path; from quantenv.core.tensor_file import write_tensors\n"
        f"write_tensors(Path(sys.argv[1]), {KIND!r}, {{'a': 2, 'b': 1}}, {{'w': torch.zeros(3), 'x': torch.ones(2)}})"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "b")], check=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_flipped_bit_is_refused_or_changes_nothing(path):
    content = path.read_bytes()
    about, sound = read(path)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        try:
            now, found = read(path)
        except QuantenvError:
            continue
        assert now == about
        assert found.keys() == sound.keys()
        assert all(torch.equal(found[name].nan_to_num(7), sound[name].nan_to_num(7)) for name in sound)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 100, -1])
def test_truncated_files_are_refused(path, cut):
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(QuantenvError, match=r"a\.safetensors is not a test's file, or is damaged .* Make it again\."):
        read(path)


def forged(header, data=b""):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return len(text).to_bytes(8, "little") + text + data


@pytest.mark.parametrize(
    "content",
    [
        b"\xff" * 100,
        (1 << 62).to_bytes(8, "little") + b"{}",
        forged(b"[" * 5000),
        forged(b'{"a":' * 5000),
        forged([]),
        forged({"__metadata__": {"quantenv": "[" * 5000}}),
        forged({"__metadata__": {"quantenv": 3}}),
        forged({"__metadata__": {"quantenv": json.dumps({"format": KIND, "description": {}, "checksum": []})}}),
        forged({"__metadata__": {"quantenv": json.dumps({"format": [KIND]})}}),
        forged({"x": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 4]}}, b"1234"),
        forged({"x": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}, b"1"),
        forged({"x": {"dtype": "F32", "shape": [0, 1 << 62, 1 << 62], "data_offsets": [0, 0]}}),
        forged({"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_forged_files_are_refused_at_once(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(QuantenvError, match="Make it again"):
        read(tmp_path / "a")


def test_other_kinds_of_files_say_so(path, tmp_path):
    with pytest.raises(QuantenvError, match=r"its format is not 'quantenv-test-2' \(it says 'quantenv-test-1'\)"):
        read_tensors(path, "quantenv-test-2", "another file", "")
    torch.save({}, tmp_path / "old.pt")
    with pytest.raises(QuantenvError, match=r"files of torch\.save, of earlier versions, are not read any more"):
        read(tmp_path / "old.pt")
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", ".", "pipe"):
        with pytest.raises(QuantenvError, match="There is no file"):
            read(tmp_path / name)


def test_ours_is_checked_when_it_is_read_as_weights_and_others_need_no_checksum(path, tmp_path):
    assert open_tensors(path, "weights").keys() == tensors().keys()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(QuantenvError, match="does not match the checksum that quantenv wrote"):
        open_tensors(path, "weights")
    safetensors.torch.save_file({"a": torch.ones(2)}, tmp_path / "theirs", {"format": "pt"})
    assert torch.equal(open_tensors(tmp_path / "theirs", "weights")["a"], torch.ones(2))
