"""Many records as one blob, compressed and checksummed. Pure.

A blob holds at most about `GROUP_BYTES_MAX` of records, so that whoever reads one knows what memory it takes, however well
it was compressed. Canonical records never hold a newline (JSON escapes it), so as a rule the blob is the records joined by
newlines: cheap to split, and ready for a columnar reader. A group in which a record does hold one is framed by lengths
instead. zstd level 1 was the fastest to halve the bytes (../docs/adr/0002-sqlite-stream.md); its checksum turns a flipped
bit into an error, and `proof_of` ties the blob to the place it was written for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence

import zstandard

LINES, LENGTHS = 0, 1
GROUP_BYTES_MAX = 8 << 20
BLOB_BYTES_MAX = 64 << 20
"""More than the largest group with its lengths; a blob that says it holds more is corrupt."""

_CHECKSUM_BYTES = 4


class CorruptBlob(Exception):
    """The blob is not what `pack` made."""


def groups(values: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    """The values, in order, in groups of about GROUP_BYTES_MAX at most."""
    if sum(map(len, values)) <= GROUP_BYTES_MAX:
        yield values
        return
    begun = size = 0
    for at, value in enumerate(values):
        if size and size + len(value) > GROUP_BYTES_MAX:
            yield values[begun:at]
            begun, size = at, 0
        size += len(value)
    yield values[begun:]


def raw_bytes(blob: bytes) -> int:
    """Bytes that the blob unpacks to, as it says itself; its own length if that is unreadable (`unpack` will tell)."""
    try:
        return max(zstandard.frame_content_size(blob), len(blob))
    except zstandard.ZstdError:
        return len(blob)


def proof_of(partition: int, base_offset: int, records: int, appended_us: int, framing: int, blob: bytes) -> int:
    """Ties a blob, by the checksum at its end, to its place: a changed place or a blob of elsewhere does not fit."""
    place = struct.pack("<5q", partition, base_offset, records, appended_us, framing)
    return zlib.crc32(blob[-_CHECKSUM_BYTES:], zlib.crc32(place))


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
        if raw_bytes(blob) > BLOB_BYTES_MAX:
            raise CorruptBlob(f"says it holds {raw_bytes(blob)} bytes")
        try:
            data = self._decompressor.decompress(blob, max_output_size=BLOB_BYTES_MAX, allow_extra_data=False)
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
