"""Structure-wise mutations by form of file: the content changes, the file around it stays well-formed.

Where files carry checksums, some mutants are *forged*: their checksum is made right again, as an attacker would, so
that schemas and checks behind it are reached.
"""

import hashlib
import io
import json
import random
import sqlite3
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from quantenv.core.arrays import parse_npy
from quantenv.core.records import COMMENT, KEY, checksum
from tests.fuzz.mutate import ODD, Raw, dump, mutate_bytes, mutate_plain

#: Stands for the file's name in what lies beside it.
NAME = "{name}"


class Mutant(NamedTuple):
    """What stands in a file's place."""

    content: bytes
    forged: bool = False
    """Whether its checksum is that of the changed content, so that what fits may be accepted."""
    beside: dict[str, bytes] | None = None
    """Other files, by what is added to the file's name."""


def mutate(form: str, content: bytes, draw: random.Random) -> Mutant:
    """Makes a mutant of a file: half of them byte by byte, the others by its form.

    Args:
        form: A key of `FORMS`.
        content: The sound file.
        draw: What it is drawn with.
    """
    structural = FORMS[form]
    if structural is None or draw.random() < 0.5:
        return Mutant(mutate_bytes(content, draw))
    return structural(content, draw)


def _json(content: bytes, draw: random.Random) -> Mutant:
    whole = json.loads(content)
    forged = isinstance(whole, dict) and KEY in whole and draw.random() < 0.6
    changed = mutate_plain(_without(whole) if forged else whole, draw)
    text = dump(changed, draw)
    return Mutant(_sealed(text) if forged else text.encode("utf-8", "surrogatepass"), forged)


def _without(content: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != KEY}


def _sealed(text: str, before: str = "") -> bytes:
    """Returns JSON with the checksum that is right for it, where it can have one."""
    try:
        content = json.loads(text)
        if isinstance(content, dict):
            text = json.dumps({**content, KEY: checksum(_without(content), before)})
    except (ValueError, RecursionError, TypeError):
        pass
    return text.encode("utf-8", "surrogatepass")


def _json_lines(content: bytes, draw: random.Random) -> Mutant:
    lines = content.splitlines(keepends=True)
    number = draw.randrange(len(lines))
    choice = draw.random()
    forged = False
    if choice < 0.6:
        line = json.loads(lines[number])
        if isinstance(line, dict) and KEY in line and draw.random() < 0.7:
            # Records of a chain: that of the last line can be made right without those that follow it.
            number, forged = len(lines) - 1, True
            last = json.loads(lines[number])
            before = json.loads(lines[number - 1])[KEY] if number else ""
            lines[number] = _sealed(dump(mutate_plain(_without(last), draw), draw), before) + b"\n"
        else:
            lines[number] = dump(mutate_plain(line, draw), draw).encode("utf-8", "surrogatepass") + b"\n"
    elif choice < 0.7:
        del lines[number]
    elif choice < 0.8:
        lines.insert(number, lines[draw.randrange(len(lines))])
    elif choice < 0.9:
        other = draw.randrange(len(lines))
        lines[number], lines[other] = lines[other], lines[number]
    else:
        lines.insert(number, draw.choice((b"\n", b"null\n", b"[]\n", b"{}\n", b"1\n", b'"\n', b"[" * 5000 + b"\n")))
    return Mutant(b"".join(lines), forged)


_YAML_LINES = (
    *("a: 9999-99-99", "a: 2001-01-01", '!!timestamp "x"', "a: !!bool x", "a: !!int abc", "a: " + "9" * 5000),
    *("a: &x [*x]", "<<: {a: 1}", "a: 1\na: 2", "? [1, 2]\n: 3", "a: !!binary xx", "a: .nan", "a: .inf", "a: 0o17"),
    *("a: 1:30", "a: ~", "---\nb: 1", "%YAML 9.9", "\tx: 1", "a: |\n  " + "x" * 10_000, "a: " + "[" * 3000),
    *("a: !!python/object/apply:os.system ['touch PWNED']", "!!python/object/new:subprocess.Popen [touch PWNED]"),
    *("x: &a [l,l,l,l,l,l,l,l,l]\n" + "".join(f"x{i}: &b{i} [{','.join(['*a'] * 9)}]\n" for i in range(9)),),
)


def _yaml(content: bytes, draw: random.Random) -> Mutant:
    text, mark, _ = content.decode().rpartition(COMMENT)
    forged = bool(mark) and draw.random() < 0.6
    body = text if mark else content.decode()
    if draw.random() < 0.3:
        lines = body.splitlines()
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(_YAML_LINES))
        changed = "\n".join(lines) + "\n"
    else:
        changed = dump(mutate_plain(yaml.safe_load(body), draw)) + "\n"  # JSON is YAML
    data = changed.encode("utf-8", "surrogatepass")
    if forged:
        digest = hashlib.blake2b(data, digest_size=8).hexdigest()
        return Mutant(data + f"{COMMENT}{digest}\n".encode(), True)
    return Mutant(data + content[len(text.encode()) :] if mark else data)


# NumPy ------------------------------------------------------------------------------------------------------

_HEADERS = (
    *("'descr': '|O'", "'descr': '<f16'", "'descr': [('a', '<f4')]", "'descr': '<U9999999'", "'descr': '|V8'"),
    *("'fortran_order': True", "'fortran_order': 1", "'shape': (-1,)", "'shape': (1e9,)", "'shape': ()", "'shape': 3"),
    *("'shape': (10000000000,)", "'shape': (0, 99999999999999999999)", "'shape': ((2,),)", "'more': 1", "'shape': (2,"),
)


def _npy(content: bytes, draw: random.Random) -> Mutant:
    return Mutant(_changed_npy(content, draw))


def _changed_npy(content: bytes, draw: random.Random) -> bytes:
    array = np.load(io.BytesIO(content))
    choice = draw.random()
    if choice < 0.5:
        text = content[10:128].decode("latin-1")
        field = draw.choice(_HEADERS)
        name = field.partition(":")[0]
        start = text.find(name)
        if start >= 0:
            end = min(at for at in (text.find(", '", start), text.find(", }", start)) if at > 0)
            text = text[:start] + field + text[end:]
        header = text.strip()[:400].encode("latin-1") + b" " * draw.randrange(60) + b"\n"
        version = draw.choice((b"\x01\x00", b"\x01\x00", b"\x02\x00", b"\x09\x00"))
        size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
        return b"\x93NUMPY" + version + size + header + content[128:]
    stream = io.BytesIO()
    if choice < 0.7:
        kind = draw.choice(("<f8", "<f4", ">f8", "<i8", "<u2", "|b1", "<c16", "<U4", "<M8[s]"))
        np.save(stream, array.astype(kind) if kind != "<M8[s]" else array.astype("<i8").astype(kind))
    elif choice < 0.9 and array.size:
        changed = array.astype(np.float64) if draw.random() < 0.5 else array.copy()
        value = draw.choice((np.nan, np.inf, -1, 1e300, 0, 255)) if changed.dtype.kind == "f" else draw.randrange(200)
        changed.reshape(-1)[draw.randrange(array.size)] = value
        np.save(stream, changed)
    else:
        np.save(stream, draw.choice((array[None], array[:-1], array.reshape(-1), np.zeros(0))))
    return stream.getvalue()


def _npz(content: bytes, draw: random.Random) -> Mutant:
    """Changes an entry of a table's file; the content hash of a table is made right again where that is simple."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice(["metadata.npy", draw.choice(sorted(entries))])
    forged = name == "metadata.npy" and draw.random() < 0.7
    if name == "metadata.npy":
        about = json.loads(np.load(io.BytesIO(entries[name])).tobytes())
        text = dump(mutate_plain(about, draw), draw)
        entries[name] = _text_array(_rehashed(text, entries) if forged else text)
    elif (choice := draw.random()) < 0.1:
        del entries[name]
    elif choice < 0.2:
        entries[draw.choice(("weights_a.npy", "more.npy", "run.py", "../x.npy", "loss_.npy"))] = entries[name]
    else:
        entries[name] = _changed_npy(entries[name], draw)
        if draw.random() < 0.7:
            forged = True
            about = json.loads(np.load(io.BytesIO(entries["metadata.npy"])).tobytes())
            entries["metadata.npy"] = _text_array(_rehashed(json.dumps(about), entries))
    return Mutant(_zipped(entries, draw), forged)


def _text_array(text: str) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8))
    return stream.getvalue()


def _rehashed(text: str, entries: dict[str, bytes]) -> str:
    """Returns a table's description with the hash that `EvaluationTable` will find, where it can have one."""
    from quantenv.core.files import content_hash

    try:
        about = json.loads(text)
        plain = {key: value for key, value in about.items() if key != "hash"}
        parts: list[bytes | str] = [json.dumps(plain, sort_keys=True)]
        splits = sorted(about["reference"])
        names = ["sensitivity", *(f"{kind}_{split}" for split in splits for kind in ("correct", "loss"))]
        names += sorted(entry.removesuffix(".npy") for entry in entries if entry.startswith("weights_"))
        for name in names:
            array = parse_npy(entries[f"{name}.npy"], "it", "biuf")
            parts += [name, array.dtype.str, np.ascontiguousarray(array).tobytes()]
        return json.dumps({**plain, "hash": content_hash(parts)})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, EOFError):
        return text


def _zipped(entries: dict[str, bytes], draw: random.Random) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if draw.random() < 0.7 else zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data, compress_type=zipfile.ZIP_DEFLATED)
    return _changed_directory(stream.getvalue(), draw)


def _zip(content: bytes, draw: random.Random) -> Mutant:
    """Changes an entry of an archive, and its CRC with it."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice(sorted(entries))
    if (choice := draw.random()) < 0.7:
        entries[name] = mutate_bytes(entries[name], draw)
    elif choice < 0.9:
        others = (f"{name}x", name.replace("/", "/../"), f"/{name}", name.split("/")[0], f"{name}/{name}")
        entries[draw.choice(others)] = entries.pop(name)
    else:
        entries = {name: entries[name]}
    return Mutant(_zipped(entries, draw), True)


def _changed_directory(content: bytes, draw: random.Random) -> bytes:
    """Sometimes lies in the archive's directory: sizes, checksums, methods, flags."""
    if draw.random() < 0.75:
        return content
    data = bytearray(content)
    at = data.find(b"PK\x01\x02", draw.randrange(len(data)))
    if at < 0:
        at = data.find(b"PK\x01\x02")
    offset, size = draw.choice(((8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (42, 4)))
    value = draw.choice((0, 1, 8, 14, 0x7FFF, 2**31 - 1)) % (1 << 8 * size - 1)
    data[at + offset : at + offset + size] = value.to_bytes(size, "little")
    return bytes(data)


# torch and safetensors --------------------------------------------------------------------------------------


def _torch(content: bytes, draw: random.Random) -> Mutant:
    """Changes an entry of a file of `torch.save` and makes its CRC right again."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    name = draw.choice([next(each for each in entries if each.endswith("data.pkl")), draw.choice(sorted(entries))])
    choice = draw.random()
    if choice < 0.1:
        del entries[name]
    elif choice < 0.2:
        entries[f"{name}x"] = entries[name]
    elif choice < 0.3 and name.endswith(".pkl"):
        entries[name] = draw.choice((b"cos\nsystem\n(S'touch PWNED'\ntR.", b"\x80\x02]q\x00.", b"\x80\x02N.", b"."))
    else:
        entries[name] = mutate_bytes(entries[name], draw)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for each, data in entries.items():
            archive.writestr(zipfile.ZipInfo(each), data)
    return Mutant(_changed_directory(stream.getvalue(), draw), True)


def _safetensors(content: bytes, draw: random.Random) -> Mutant:
    """Changes tensors, the header or the description; the checksum of a file of ours is often made right again."""
    import safetensors.torch
    import torch

    from quantenv.core.tensor_file import ENTRY, _checksum

    length = int.from_bytes(content[:8], "little")
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    about = json.loads(header.get("__metadata__", {}).get(ENTRY, "null"))
    if draw.random() < 0.4:  # the header, as it is
        text = dump(mutate_plain(header, draw), draw).encode("utf-8", "surrogatepass")
        size = len(text) if draw.random() < 0.9 else draw.choice((0, len(text) - 1, 1 << 30, 1 << 63))
        return Mutant(size.to_bytes(8, "little") + text + data, about is None)
    tensors = safetensors.torch.load(content)
    description = about["description"] if about else "{}"
    if about and (not tensors or draw.random() < 0.5):
        description = dump(mutate_plain(json.loads(description), draw), draw)
    else:
        name = draw.choice(sorted(tensors))
        tensor = tensors[name]
        change = draw.choice(("drop", "rename", "shape", "dtype", "nan", "value", "value", "swap", "scalar"))
        if change in ("drop", "rename"):
            del tensors[name]
            if change == "rename":
                tensors[draw.choice((f"{name}x", "", "a/b", name.upper(), "momentum/-1"))] = tensor
        elif change == "shape":
            tensors[name] = draw.choice((tensor[None], tensor.reshape(-1)[:-1], torch.zeros(0), tensor.reshape(-1)))
        elif change == "dtype":
            tensors[name] = tensor.to(draw.choice((torch.float64, torch.float16, torch.int64, torch.bool, torch.uint8)))
        elif change == "scalar":
            tensors[name] = torch.tensor(1.0)
        elif change == "swap":
            tensors[name] = tensors[draw.choice(sorted(tensors))]
        elif tensor.numel():
            flat = tensor.clone().reshape(-1)
            odd = (torch.nan, torch.inf, -torch.inf) if change == "nan" else (0, 1, 77)
            flat[draw.randrange(flat.numel())] = draw.choice(odd) if flat.is_floating_point() else draw.randrange(100)
            tensors[name] = flat.reshape(tensor.shape)
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    if not about:
        return Mutant(safetensors.torch.save(tensors, header.get("__metadata__")), True)
    forged = draw.random() < 0.7
    description = description.encode("utf-8", "replace").decode()
    mark = _checksum(about["format"], description, tensors) if forged else about["checksum"]
    entry = json.dumps({**about, "description": description, "checksum": mark})
    return Mutant(safetensors.torch.save(tensors, {ENTRY: entry}), forged)


# Parquet ----------------------------------------------------------------------------------------------------


def _parquet(content: bytes, draw: random.Random) -> Mutant:
    """Changes a Parquet file and writes the checksum beside it anew."""
    import pyarrow
    from pyarrow import parquet

    if draw.random() < 0.5:
        return _signed(mutate_bytes(content, draw), True)
    table = parquet.read_table(pyarrow.BufferReader(content))
    description = dict(table.schema.metadata or {})
    names = table.column_names
    name = draw.choice(names)
    choice = draw.random()
    if choice < 0.2:
        table = table.drop_columns([name])
    elif choice < 0.3:
        table = table.rename_columns([f"{each}x" if each == name else each for each in names])
    elif choice < 0.6 or b"quantenv" not in description:
        values = table[name].to_pylist()
        odd = (None, None, "x", 1.5, -1, 2**40, True, float("nan"), float("inf"), b"\xff", [1])
        kind = draw.choice((table.schema.field(name).type, table.schema.field(name).type, pyarrow.string(), None))
        values[draw.randrange(len(values))] = draw.choice(odd)
        try:
            column = pyarrow.array(values, type=kind)
        except (pyarrow.ArrowException, ValueError, TypeError, OverflowError):
            column = pyarrow.array([str(value) for value in values])
        table = table.set_column(names.index(name), name, column)
    elif choice < 0.7:
        table = table.slice(draw.randrange(table.num_rows), draw.randrange(table.num_rows))
    else:
        about = json.loads(description[b"quantenv"])
        text = dump(mutate_plain(about, draw), draw).encode("utf-8", "surrogatepass")
        table = table.replace_schema_metadata({b"quantenv": text})
    stream = io.BytesIO()
    parquet.write_table(table, stream, compression=draw.choice(("zstd", "snappy", "none")))
    return _signed(stream.getvalue(), True)


def _signed(content: bytes, forged: bool) -> Mutant:
    return Mutant(content, forged, {".sha256": f"{hashlib.sha256(content).hexdigest()}  {NAME}\n".encode()})


# SQLite -----------------------------------------------------------------------------------------------------


def _sqlite(content: bytes, draw: random.Random) -> Mutant:
    """Changes cells, rows, columns or tables by SQL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.sqlite"
        path.write_bytes(content)
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = DELETE")
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        table = draw.choice(tables)
        columns = [row[1] for row in connection.execute(f'PRAGMA table_info("{table}")')]
        column = draw.choice(columns)
        odd: Any = draw.choice((None, 0, -1, 2**62, 1.5, "x", "", "9" * 5000, b"\xff\x00", "[" * 5000, "null"))
        which = f"WHERE rowid % 3 = {draw.randrange(3)}" if draw.random() < 0.6 else ""
        choice = draw.random()
        try:
            if choice < 0.6:
                connection.execute(f'UPDATE OR REPLACE "{table}" SET "{column}" = ? {which}', (odd,))
            elif choice < 0.7:
                connection.execute(f'DELETE FROM "{table}" {which}')
            elif choice < 0.8:
                connection.execute(f'DROP TABLE "{table}"')
            elif choice < 0.9:
                connection.execute(f'ALTER TABLE "{table}" RENAME COLUMN "{column}" TO "more"')
            else:
                connection.execute(f'ALTER TABLE "{table}" ADD COLUMN "more"')
            connection.commit()
        except sqlite3.Error:
            connection.rollback()
        connection.close()
        return Mutant(path.read_bytes())


# Images and archives ----------------------------------------------------------------------------------------


def _png(content: bytes, draw: random.Random) -> Mutant:
    """Claims another size or depth in the header, with the right CRC."""
    data = bytearray(content)
    field = draw.choice(((16, 4), (20, 4), (24, 1), (25, 1), (28, 1)))
    value = draw.choice((0, 1, 2, 3, 6, 16, 65_535, 2**31 - 1)) % (1 << 8 * field[1])
    data[field[0] : field[0] + field[1]] = value.to_bytes(field[1], "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return Mutant(bytes(data), True)


def _text(content: bytes, draw: random.Random) -> Mutant:
    lines = content.decode().splitlines() or [""]
    lines[draw.randrange(len(lines))] = str(draw.choice([each for each in ODD if not isinstance(each, Raw)]))
    return Mutant("\n".join(lines).encode("utf-8", "surrogatepass"))


#: Structure-wise mutations by form; None where there are only bytes.
FORMS: dict[str, Callable[[bytes, random.Random], Mutant] | None] = {
    "bytes": None,
    "json": _json,
    "jsonl": _json_lines,
    "yaml": _yaml,
    "npy": _npy,
    "npz": _npz,
    "zip": _zip,
    "torch": _torch,
    "safetensors": _safetensors,
    "parquet": _parquet,
    "sqlite": _sqlite,
    "png": _png,
    "text": _text,
}
