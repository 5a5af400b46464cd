"""What is done to a file: bytes, values of JSON and YAML, columns of Parquet, the file itself, permissions.

A mutation changes a file in place. It is a function of the path and a seeded generator, so that a case can be repeated.
"""

from __future__ import annotations

import codecs
import json
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import yaml

Mutation = Callable[[Path, random.Random], None]
JSON_SUFFIXES = (".json", ".jsonl")
_DEPTH = 100_000


def flip_bits(path: Path, rng: random.Random) -> None:
    """One to eight flipped bits."""
    data = bytearray(path.read_bytes())
    for _ in range(rng.randint(1, 8) if data else 0):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def flip_early_bits(path: Path, rng: random.Random) -> None:
    """A flipped bit in the first bytes, where headers are."""
    data = bytearray(path.read_bytes())
    if data:
        data[rng.randrange(min(len(data), 400))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncate(path: Path, rng: random.Random) -> None:
    """The end is missing."""
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data) + 1)])


def delete_slice(path: Path, rng: random.Random) -> None:
    """A part in the middle is missing."""
    data = path.read_bytes()
    start = rng.randrange(len(data) + 1)
    path.write_bytes(data[:start] + data[start + rng.randint(1, 64) :])


def insert_bytes(path: Path, rng: random.Random) -> None:
    """Bytes that do not belong there: random ones, NULs, escape sequences, brackets."""
    data, start = path.read_bytes(), rng.randrange(len(path.read_bytes()) + 1)
    extra = rng.choice((rng.randbytes(16), b"\0" * 32, b"\x1b]0;x\x07\x1b[31m", b"\xff\xfe", b"[" * 2_000, b'"' * 3))
    path.write_bytes(data[:start] + extra + data[start:])


def repeat_slice(path: Path, rng: random.Random) -> None:
    """A part is there twice."""
    data = path.read_bytes()
    start = rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.randint(1, 200))
    path.write_bytes(data[:end] + data[start:])


def empty(path: Path, rng: random.Random) -> None:
    """Nothing in it."""
    path.write_bytes(b"")


def deep(path: Path, rng: random.Random) -> None:
    """Brackets only, nested deeply."""
    path.write_bytes(rng.choice((b"[", b'{"a":', b"{a: ", b"- ")) * _DEPTH)


def other_encoding(path: Path, rng: random.Random) -> None:
    """Text in an encoding that is not UTF-8, or with a byte order mark."""
    data = path.read_bytes()
    text = data.decode("utf-8", errors="replace")
    choice = rng.randrange(4)
    if choice == 0:
        path.write_bytes(text.encode("utf-16"))
    elif choice == 1:
        path.write_bytes(codecs.BOM_UTF8 + data)
    elif choice == 2:
        path.write_bytes((text + "é").encode("latin-1", errors="replace"))
    else:
        path.write_bytes(text.encode("utf-32-be"))


def remove(path: Path, rng: random.Random) -> None:
    """The file is not there."""
    path.unlink()


def make_folder(path: Path, rng: random.Random) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


def dangling_link(path: Path, rng: random.Random) -> None:
    """A link to nothing, or to itself."""
    path.unlink()
    path.symlink_to(rng.choice((path.name, "nowhere")))


def swap(path: Path, rng: random.Random) -> None:
    """The content of another file of the same folder."""
    others = sorted(other for other in path.parent.iterdir() if other.is_file() and other != path)
    if others:
        shutil.copyfile(rng.choice(others), path)
    else:
        path.write_bytes(b"PAR1")


def no_permission(path: Path, rng: random.Random) -> None:
    """The file may not be read, or its folder not be listed or written."""
    if rng.randrange(2):
        path.chmod(0)
    else:
        path.parent.chmod(rng.choice((0o000, 0o500, 0o444)))


def odd_value(rng: random.Random) -> Any:
    """A value that somebody did not expect."""
    return rng.choice(
        (
            *(None, True, False, 0, -1, 1, 10**30, 1e308, -1e308, 1e-320, float("nan"), float("inf")),
            *("", "x", "\0", "\x1b[31m", "\ud800", "\u202e", "../../..", "/", "9" * 5_000),
            *([], {}, [[]], [None], {"": None}, [1, 2, 3], {"type": "Sequence"}, ["a", "b"]),
        )
    )


def nested(depth: int) -> Any:
    """Lists in lists."""
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every value inside, long lists and mappings by a part of them."""
    yield path
    if isinstance(value, dict):
        for key in list(value)[:60]:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(len(value), 20)):
            yield from places(value[index], (*path, index))


def change_value(value: Any, rng: random.Random) -> Any:
    """The same document with one value of another type or size, renamed, or missing."""
    known = list(places(value))
    shallow = [place for place in known if len(place) <= 2]
    place = rng.choice(shallow if rng.randrange(2) else known)
    if not place:
        return odd_value(rng)
    target = value
    for key in place[:-1]:
        target = target[key]
    choice = rng.randrange(8)
    if choice == 0:
        del target[place[-1]]
    elif choice == 1 and isinstance(target, dict):
        target[f"{place[-1]}_"] = target.pop(place[-1])
    elif choice == 2:
        target[place[-1]] = nested(rng.choice((50, 900)))
    elif choice == 3 and isinstance(target, list):
        target.append(target[place[-1]])
    elif choice == 4 and isinstance(target[place[-1]], int | float):
        target[place[-1]] = rng.choice((-1, 0, 1e38, 1e300, 2**31, 2**63, 10**25, 0.5, "1"))
    else:
        target[place[-1]] = odd_value(rng)
    return value


def change_json(path: Path, rng: random.Random) -> None:
    """A value of a JSON file, or of one line of a JSONL file."""
    if path.suffix == ".jsonl":
        lines = path.read_text(encoding="utf-8").splitlines()
        number = rng.randrange(len(lines))
        lines[number] = json.dumps(change_value(json.loads(lines[number]), rng))
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(change_value(json.loads(path.read_text(encoding="utf-8")), rng)), encoding="utf-8")


def deep_json_value(path: Path, rng: random.Random) -> None:
    """A value of a JSON file that is nested deeper than Python's own parser goes."""
    text = path.read_text(encoding="utf-8")
    inside = "[" * _DEPTH + "]" * _DEPTH
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = rng.randrange(len(lines))
    start = lines[number].find(":")
    lines[number] = f'{{"deep": {inside}, {lines[number].lstrip()[1:]}' if start >= 0 else inside
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def double_key(path: Path, rng: random.Random) -> None:
    """A key of a JSON object is there twice, with different values."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    number = rng.randrange(len(lines))
    value = json.loads(lines[number])
    if isinstance(value, dict) and value:
        key = rng.choice(list(value))
        pair = f"{json.dumps(key)}: {json.dumps(odd_value(rng))}"
        lines[number] = "{" + pair + ", " + json.dumps(value)[1:]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def change_yaml(path: Path, rng: random.Random) -> None:
    """A value of a recipe."""
    value = change_value(yaml.safe_load(path.read_text(encoding="utf-8")), rng)
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def change_parquet(path: Path, rng: random.Random) -> None:
    """A column of another type, with nulls, renamed, or missing."""
    table = parquet.read_table(path)
    number = rng.randrange(table.num_columns)
    length, name = table.num_rows, table.column_names[number]
    columns: Mapping[str, Callable[[], Any]] = {
        "missing": lambda: None,
        "text": lambda: pa.array(["x"] * length),
        "numbers": lambda: pa.array([rng.choice((0, -1, 2**62))] * length),
        "floats": lambda: pa.array([float("nan")] * length),
        "nulls": lambda: pa.nulls(length),
        "dictionary": lambda: pa.array(["a"] * length).dictionary_encode(),
        "list": lambda: pa.array([[[]]] * length),
        "bytes": lambda: pa.array([b"\xff\x00"] * length),
        "time": lambda: pa.array([2**62] * length, pa.timestamp("s")),
        "map": lambda: pa.array([[("a", 1)]] * length, pa.map_(pa.string(), pa.int64())),
    }
    column = columns[rng.choice(list(columns))]()
    table = table.remove_column(number) if column is None else table.set_column(number, name, column)
    parquet.write_table(table, path)


def change_safetensors(path: Path, rng: random.Random) -> None:
    """The header of a safetensors file: its length, or a value of it."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    choice = rng.randrange(4)
    if choice == 0:
        path.write_bytes(struct.pack("<Q", rng.choice((0, 1, length + 1, 2**40, 2**63))) + data[8:])
        return
    if choice == 1:
        header.pop(rng.choice(list(header)))
    else:
        header = change_value(header, rng)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])


_OF_ANY_FILE: tuple[Mutation, ...] = (
    *(flip_bits, flip_bits, flip_early_bits, truncate, truncate, delete_slice, insert_bytes, repeat_slice, empty),
    *(deep, other_encoding, remove, make_folder, dangling_link, swap, no_permission),
)
_OF_VALUES: Mapping[str, tuple[Mutation, ...]] = {
    ".json": (change_json, deep_json_value, double_key),
    ".jsonl": (change_json, deep_json_value, double_key),
    ".yaml": (change_yaml,),
    ".parquet": (change_parquet,),
    ".safetensors": (change_safetensors,),
}


def choose(path: Path, rng: random.Random) -> Mutation:
    """A mutation that fits a file; half of them change values, where a file has some."""
    of_values = _OF_VALUES.get(path.suffix, ())
    if of_values and rng.randrange(2):
        return rng.choice((of_values[0],) * 3 + of_values)
    return rng.choice(_OF_ANY_FILE)


def obey_permissions() -> bool:
    """Let this process, which may be root's, obey permission bits; False where that cannot be done."""
    if os.geteuid() != 0:
        return True
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this process
    return int(libc.capset(header, (ctypes.c_uint32 * 6)())) == 0
