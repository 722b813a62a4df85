"""Many records as one blob, compressed and checksummed. Pure.

Canonical records never hold a newline (JSON escapes it), so as a rule the blob is the records joined by newlines: cheap to
split, and ready for a columnar reader. A group in which a record does hold one is framed by lengths instead. zstd level 1
was the fastest to halve the bytes (../docs/adr/0002-sqlite-stream.md); its checksum turns a flipped bit into an error.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import zstandard

LINES, LENGTHS = 0, 1
BLOB_BYTES_MAX = 1 << 30


class CorruptBlob(Exception):
    """The blob is not what `pack` made."""


class Packer:
    """Packs and unpacks; one per thread, because zstd contexts are not shared."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=1, write_checksum=True, write_content_size=True)
        self._decompressor = zstandard.ZstdDecompressor()

    def pack(self, values: Sequence[bytes]) -> tuple[int, bytes]:
        """Framing and blob of one or more records."""
        joined = b"\n".join(values)
        if joined.count(b"\n") == len(values) - 1:
            return LINES, self._compressor.compress(joined)
        lengths = struct.pack(f"<{len(values) + 1}I", len(values), *map(len, values))
        return LENGTHS, self._compressor.compress(lengths + b"".join(values))

    def unpack(self, framing: int, blob: bytes, count: int) -> list[bytes]:
        """The records again. Raises CorruptBlob."""
        try:
            data = self._decompressor.decompress(blob, max_output_size=BLOB_BYTES_MAX)
        except zstandard.ZstdError as error:
            raise CorruptBlob(str(error)) from None
        values = data.split(b"\n") if framing == LINES else _by_lengths(data)
        if len(values) != count:
            raise CorruptBlob(f"{len(values)} records where {count} were written")
        return values


def _by_lengths(data: bytes) -> list[bytes]:
    try:
        (count,) = struct.unpack_from("<I", data)
        lengths = struct.unpack_from(f"<{count}I", data, 4)
    except struct.error as error:
        raise CorruptBlob(str(error)) from None
    at = 4 * (count + 1)
    if at + sum(lengths) != len(data):
        raise CorruptBlob("the lengths do not fit the blob")
    values = []
    for length in lengths:
        values.append(data[at : at + length])
        at += length
    return values
