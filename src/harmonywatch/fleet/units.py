"""A file written by someone else, cut into what the gateway judges one by one.

Three shapes are understood, told apart by the first line: NDJSON (each line a unit, broken lines too: the gateway is to
refuse and keep them), one JSON document over several lines, and one JSON array (each element a unit, verbatim but for
line feeds between tokens). Any of them may be gzipped; `-` is standard input. Memory stays bounded by UNIT_BYTES_MAX
whatever the size of the file.
"""

from __future__ import annotations

import gzip
import io
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

UNIT_BYTES_MAX = (16 << 20) - 2
"""What fits into a request alone."""
HEAD_BYTES_MAX = 2 << 20
"""How far the start of a file is looked at to know its shape: a report is at most 1 MiB, so a document is no longer."""
CHUNK_BYTES = 1 << 18
GZIP_MAGIC = b"\x1f\x8b"
STRUCTURE = re.compile(rb'["\\\[\]{},]')


@dataclass(frozen=True)
class Unit:
    """`number`: of the line, or of the array's element, from 1. `data` is None if larger than UNIT_BYTES_MAX."""

    number: int
    data: bytes | None


def read_units(path: str | Path) -> Iterator[Unit]:
    """Every unit of the file that is not blank, in order. Raises OSError, or EOFError for a cut gzip file."""
    with _opened(path) as file:
        chunks = iter(lambda: _some(file), b"")
        head, shape = _look(chunks)
        whole = _again(head, chunks)
        if shape == "array":
            yield from _elements(whole)
        elif shape == "document":
            yield Unit(1, _on_one_line(head))
        else:
            yield from _lines(whole)


@contextmanager
def _opened(path: str | Path) -> Iterator[BinaryIO]:
    with ExitStack() as stack:
        plain = sys.stdin.buffer if str(path) == "-" else stack.enter_context(Path(path).open("rb"))
        # Text handed to a test's or a notebook's stdin has no peek: everything real is a BufferedReader.
        peeked = plain.peek(2) if isinstance(plain, io.BufferedReader) else b""
        yield cast("BinaryIO", gzip.GzipFile(fileobj=plain)) if peeked[:2] == GZIP_MAGIC else plain


def _some(file: BinaryIO) -> bytes:
    """What is there, at most CHUNK_BYTES, without waiting for more; nothing only at the end."""
    return cast("io.BufferedReader", file).read1(CHUNK_BYTES)


def _again(head: bytes, chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield head
    yield from chunks


def _look(chunks: Iterator[bytes]) -> tuple[bytes, str]:
    """Reads until the shape is clear: what was read, and lines, array or document."""
    head, ended = bytearray(), False
    while True:
        shape = shape_of(bytes(head), ended)
        if shape is not None:
            return bytes(head), shape
        chunk = next(chunks, b"")
        ended = not chunk
        head += chunk


def shape_of(head: bytes, ended: bool) -> str | None:
    """lines, array or document; None when the head does not tell yet. `ended`: the head is the whole file."""
    text = head.lstrip()
    first_line, newline, rest = text.partition(b"\n")
    full = ended or len(head) >= HEAD_BYTES_MAX
    if not (newline or full):
        return None
    opening = text[:1]
    if opening not in (b"[", b"{"):
        return "lines"
    if opening == b"[" and not newline and not ended:
        return "array"
    if _is_json(first_line):
        if opening == b"{" or rest.strip():
            return "lines"
        return "array" if full else None
    if first_line.rstrip()[-1:] not in (b"[", b"{", b",", b":"):
        return "lines"
    if opening == b"[":
        return "array"
    if not full:
        return None
    return "document" if _is_json(text) else "lines"


def _is_json(text: bytes) -> bool:
    try:
        msgspec.json.decode(text, type=msgspec.Raw)
    except (msgspec.DecodeError, ValueError, RecursionError):
        return False
    return True


def _on_one_line(data: bytes) -> bytes:
    """The same document without line feeds: in valid JSON they stand only between tokens."""
    return data.replace(b"\r", b" ").replace(b"\n", b" ").strip()


class _Gathered:
    """One unit as it comes in, never more of it than is allowed."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= UNIT_BYTES_MAX:
            self._parts.append(part)
        else:
            self._parts.clear()

    def done(self) -> bytes | None:
        """The unit (None: too large), and a fresh start."""
        data = b"".join(self._parts) if self._size <= UNIT_BYTES_MAX else None
        self._parts, self._size = [], 0
        return data


def _lines(chunks: Iterable[bytes]) -> Iterator[Unit]:
    number, gathered = 1, _Gathered()
    for chunk in chunks:
        *ended, open_end = chunk.split(b"\n")
        for part in ended:
            gathered.add(part)
            data = gathered.done()
            if data is None or data.strip():
                yield Unit(number, data)
            number += 1
        gathered.add(open_end)
    data = gathered.done()
    if data is None or data.strip():
        yield Unit(number, data)


class _Nesting:
    """Where in an array the bytes are: cuts at the commas of depth 1, without decoding, so nothing is changed."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_text = False
        self._escaped = False

    def cuts(self, chunk: bytes) -> list[int]:
        """Positions in the chunk of the opening bracket, the commas between elements, and the closing bracket."""
        found = []
        skip = 0 if self._escaped else -1
        self._escaped = False
        for match in STRUCTURE.finditer(chunk):
            at = match.start()
            if at == skip:
                continue
            token = chunk[at]
            if token == 0x5C:
                skip = at + 1 if self._in_text else -1
                self._escaped = self._in_text and skip == len(chunk)
            elif token == 0x22:
                self._in_text = not self._in_text
            elif not self._in_text and self._cuts_at(token):
                found.append(at)
        return found

    def _cuts_at(self, token: int) -> bool:
        if token in b"[{":
            self._depth += 1
            return self._depth == 1
        if token in b"]}":
            self._depth -= 1
            return self._depth == 0
        return self._depth == 1


def _elements(chunks: Iterable[bytes]) -> Iterator[Unit]:
    number, gathered, nesting = 1, _Gathered(), _Nesting()
    for chunk in chunks:
        start = 0
        for cut in nesting.cuts(chunk):
            gathered.add(chunk[start:cut])
            start = cut + 1
            data = gathered.done()
            if data is None or data.strip():
                yield Unit(number, data if data is None else _on_one_line(data))
                number += 1
        gathered.add(chunk[start:])
    data = gathered.done()
    if data is None or data.strip():
        yield Unit(number, data if data is None else _on_one_line(data))
