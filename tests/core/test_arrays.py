import io
import random

import numpy as np
import pytest

from quantenv.core.arrays import parse_npy
from quantenv.core.errors import QuantenvError


def saved(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "array",
    [
        np.arange(192.0).reshape(3, 8, 8),
        np.asfortranarray(np.arange(12, dtype=np.int16).reshape(3, 4)),
        np.arange(6, dtype=">f4").reshape(1, 2, 3),
        np.array(3.5),
        np.array([7], dtype=np.uint8),
        np.zeros((0, 4)),
        np.array([], dtype=np.int64),
    ],
    ids=str,
)
def test_what_numpy_saves_is_read_as_numpy_reads_it(array):
    read = parse_npy(saved(array), "x")
    np.testing.assert_array_equal(read, np.load(io.BytesIO(saved(array))))
    assert (read.dtype, read.shape) == (array.dtype.newbyteorder("="), array.shape)
    assert not read.flags.writeable


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_all_versions_of_the_format_are_read(version):
    file = io.BytesIO()
    np.lib.format.write_array(file, np.arange(3), version=version)
    assert parse_npy(file.getvalue(), "x").tolist() == [0, 1, 2]


def with_header(header: str, body: bytes = b"\0" * 24) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1") + body


def header(descr: str = "<f8", shape: str = "(3,)") -> bytes:
    return with_header(f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", r"not a NumPy \.npy file"),
        (b"PK\x03\x04", r"not a NumPy \.npy file"),
        (saved(np.ones(3))[:-1], "promises 24 bytes of numbers, and it has 23"),
        (saved(np.ones(3)) + b"\0", "promises 24 bytes of numbers, and it has 25"),
        (saved(np.ones(3))[:40], "header would have 118 bytes"),
        (b"\x93NUMPY\x09\x00\x00\x00", "format version is '0900'"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "header would have 4,294,967,295 bytes"),
        (header(shape="(99999999, 9)"), "promises 7,199,999,928 bytes of numbers, and it has 24"),
        (header(shape="(0, 999999999999, 999999999999)"), "its shape would be"),
        (header(shape="(9999999999999999999,)"), "not of plain numbers"),
        (header(shape=f"({'9' * 5000},)"), "header would have"),
        (header(shape="(-3,)"), "not of plain numbers"),
        (header(descr="|O"), "not of plain numbers"),
        (header(descr="<f7"), "no type '<f7'"),
        (header(descr="<c8"), "holds complex64; expected one array of integers or floats"),
        (with_header("{'descr': '<f8' 'fortran_order'"), "not of plain numbers: its header is"),
        (with_header("("), r"its header is '\('"),
        (saved(np.array([True])), "holds bool; expected one array of integers or floats"),
        (saved(np.array([1, "a"], dtype=object)), "not of plain numbers"),
    ],
)
def test_damage_is_one_sentence(data, said):
    with pytest.raises(QuantenvError, match=said) as error:
        parse_npy(data, "The table x.npy")
    assert str(error.value).startswith("The table x.npy ")
    assert len(str(error.value)) < 250


def test_no_damage_raises_anything_else():
    rng, sound = random.Random(0), saved(np.arange(8.0))
    for _ in range(3000):
        data = bytearray(sound)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(128)] = rng.choice([rng.randrange(256), *b"'()[]{},0123456789<|"])
        try:
            array = parse_npy(bytes(data), "x")
        except QuantenvError:
            continue
        assert array.nbytes == 64
