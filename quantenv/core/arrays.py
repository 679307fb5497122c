"""NumPy's ``.npy`` format, read from bytes without NumPy's own reader.

That one parses a header as Python source, so damaged ones raise what they like (`tokenize.TokenError`, `SyntaxError`),
and believes the shape before it looks at the size. Here the header must be as NumPy writes it, to the character, the
values numbers, and the size exactly what the header promises.
"""

import math
import re

import numpy as np

from quantenv.core.errors import QuantenvError, shown

MAGIC = b"\x93NUMPY"
HEADER_LIMIT = 4096
"""Bytes of a header; NumPy's for three axes has 118."""

_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[<>|=]?[biufcUS][0-9]{1,4})', 'fortran_order': (?P<fortran>True|False), "
    r"'shape': \((?P<shape>|[0-9]{1,12},|[0-9]{1,12}(?:, [0-9]{1,12}){1,31}),?\), ?\} *\n?"
)


def parse_npy(data: bytes, where: str, kinds: str = "iuf", error: type[QuantenvError] = QuantenvError) -> np.ndarray:
    """Reads an array from the bytes of a ``.npy`` file.

    Args:
        data: The whole file.
        where: What messages begin with, such as ``"The look-up table x.npy"``.
        kinds: Kinds of type that it may have, as `numpy.dtype.kind` names them.
        error: Class of the error.

    Returns:
        The array, of the file's type in this machine's byte order, read-only.

    Raises:
        QuantenvError: If it is no ``.npy`` file, is damaged or truncated, or holds something else than `kinds`.
    """
    if not data.startswith(MAGIC):
        raise error(f"{where} is not a NumPy .npy file of numbers; expected one array, as numpy.save writes it.")
    damaged = f"{where} is damaged or truncated"
    widths = {b"\x01\x00": 2, b"\x02\x00": 4, b"\x03\x00": 4}
    version = data[6:8]
    if version not in widths:
        raise error(f"{damaged}: its format version is {version.hex()!r}; expected 1.0, 2.0 or 3.0.")
    start = 8 + widths[version]
    length = int.from_bytes(data[8:start], "little")
    if length > HEADER_LIMIT or len(data) < start + length:
        raise error(f"{damaged}: its header would have {length:,} bytes.")
    text = data[start : start + length].decode("latin-1")
    header = _HEADER.fullmatch(text)
    if header is None:
        raise error(f"{damaged}, or not of plain numbers: its header is {shown(text.strip())}.")
    try:
        dtype = np.dtype(header["descr"])
    except TypeError as problem:
        raise error(f"{damaged}: it has no type {header['descr']!r}.") from problem
    if dtype.kind not in kinds:
        raise error(f"{where} holds {dtype}; expected one array of {_named(kinds)}.")
    shape = tuple(int(size) for size in header["shape"].split(",") if size.strip())
    if math.prod(max(size, 1) for size in shape) > 2**40:  # an empty array could have any other axis
        raise error(f"{damaged}: its shape would be {shown(shape)}.")
    body, expected = data[start + length :], math.prod(shape) * dtype.itemsize
    if len(body) != expected:
        raise error(f"{damaged}: its header promises {expected:,} bytes of numbers, and it has {len(body):,}.")
    if header["fortran"] == "True":
        array = np.frombuffer(body, dtype=dtype).reshape(shape, order="F")
    else:
        array = np.frombuffer(body, dtype=dtype).reshape(shape)
    array = array.astype(dtype.newbyteorder("="), copy=False)
    array.flags.writeable = False
    return array


def _named(kinds: str) -> str:
    names = {"b": "bools", "i": "integers", "u": "integers", "f": "floats", "c": "complex numbers", "U": "texts"}
    return " or ".join(dict.fromkeys(names[kind] for kind in kinds))
