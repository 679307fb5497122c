import contextlib
import io
import random
import zipfile

import pytest
import safetensors.torch
import torch

from quantenv.core.errors import QuantenvError
from quantenv.core.weight_files import check_tensor, open_tensors

STATE = {"a.weight": torch.arange(600, dtype=torch.float32).view(20, 30), "a.bias": torch.randn(20)}


def torch_bytes(content=STATE):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def damaged(content, rng):
    """Returns a file with one change of a random kind."""
    mutant = bytearray(content)
    at, kind = rng.randrange(len(mutant)), rng.randrange(4)
    if kind == 0:
        mutant[at] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del mutant[at:]
    elif kind == 2:
        del mutant[at : at + rng.randrange(1, 40)]
    else:
        mutant[at : at + 8] = rng.randbytes(8)
    return bytes(mutant)


def test_damage_of_a_torch_file_is_refused_or_changes_nothing(tmp_path):
    rng, content, path, refused = random.Random(0), torch_bytes(), tmp_path / "weights.pt", 0
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        try:
            read = open_tensors(path, "weights")
        except QuantenvError:
            refused += 1
        else:
            assert all(torch.equal(read[name], value) for name, value in STATE.items())
    assert refused > 200


def test_damage_of_safetensors_is_no_other_error(tmp_path):
    rng, content, path = random.Random(0), safetensors.torch.save(STATE), tmp_path / "weights.safetensors"
    path.write_bytes(content)
    assert torch.equal(open_tensors(path, "weights")["a.bias"], STATE["a.bias"])
    for _ in range(300):
        path.write_bytes(damaged(content, rng))
        with contextlib.suppress(QuantenvError):
            open_tensors(path, "weights")


def test_files_without_a_checksum_of_their_own_are_refused(tmp_path):
    path = tmp_path / "weights.pt"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    with pytest.raises(QuantenvError, match=r"before 1\.6.*save it again with torch\.save"):
        open_tensors(path, "weights")


def test_an_archive_that_unpacks_to_more_than_it_is_is_refused(tmp_path):
    path = tmp_path / "weights.pt"
    with zipfile.ZipFile(io.BytesIO(torch_bytes())) as source, zipfile.ZipFile(path, "w", 8) as packed:
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    with pytest.raises(QuantenvError, match="damaged or truncated"):
        open_tensors(path, "weights")


def write_script(path):
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("net/data.pkl", "net/code/net.py", "net/constants.pkl"):
            archive.writestr(name, b"")


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.mkdir(), "Is a directory"),
        (write_script, "TorchScript"),
        (lambda path: path.write_bytes(b"PK\x03\x04"), "damaged or truncated"),
        (lambda path: torch.save(torch.nn.Linear(2, 2), path), "more than tensors and plain values"),
    ],
)
def test_other_files_are_clear_errors(tmp_path, write, sentence):
    write(tmp_path / "weights.pt")
    with pytest.raises(QuantenvError, match=rf"Cannot read the weights .*weights\.pt: .*{sentence}"):
        open_tensors(tmp_path / "weights.pt", "weights")


OWN = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (1.0, "is a float; expected a tensor"),
        (torch.zeros(2), r"is \(2,\), expected \(2, 2\)"),
        (OWN.to_sparse(), "is sparse_coo; expected a dense tensor"),
        (torch._empty_affine_quantized((2, 2), scale=1.0, zero_point=0, dtype=torch.qint8), "is quantized"),
        (torch.zeros(2, 2, device="meta"), "is on device meta"),
        (OWN.to(torch.complex64), "is complex64; expected float32"),
        (OWN.to(torch.int8), "is int8; expected float32"),
        (OWN.to(torch.float8_e4m3fn), "is float8_e4m3fn; expected float32"),
        (torch.tensor([[0, 1], [float("nan"), 0]]), "holds NaN or infinity"),
        (torch.full((2, 2), 1e300, dtype=torch.float64), ".*too large for float32"),
    ],
)
def test_tensors_that_cannot_replace_another_are_named(value, sentence):
    with pytest.raises(QuantenvError, match=f"^conv {sentence}"):
        check_tensor("conv", value, OWN)


def test_tensors_are_converted_and_masks_kept():
    half = torch.rand(2, 2).half()
    assert torch.equal(check_tensor("x", half, OWN), half.float())
    mask = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    assert torch.equal(check_tensor("mask", mask, mask.clone()), mask)
    with pytest.raises(QuantenvError, match="do not fit uint8"):
        check_tensor("count", torch.tensor(300), torch.tensor(0, dtype=torch.uint8))
