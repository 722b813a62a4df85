"""Bodies as they were before the sender packed them: gzip (also of several members), zstd (several frames), identity.

The output is bounded while it is made, never after: a bomb costs its limit and one chunk, not what it would unfold to.
A body that ends early is damaged, not short. Pure, and safe in any thread.
"""

from __future__ import annotations

import io
import zlib

import zstandard

CODINGS = ("gzip", "zstd", "identity")
ACCEPT_ENCODING = ", ".join(CODINGS)

CHUNK_BYTES = 64 << 10
PIECES_MAX = 10_000
"""Members, frames and blocks a body may have: one a line is the most that makes sense. Without a bound, a body of tiny
pieces costs minutes to unpack."""

WINDOW_BYTES_MAX = 16 << 20
"""A longer window than the longest body helps nobody and is memory that the sender decides about."""

_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_RLE = 1


class BodyTooLargeError(Exception):
    """More than the limit once unpacked."""


class BodyDamagedError(Exception):
    """Not what its Content-Encoding says, or cut off."""


def unpack(body: bytes, coding: str, most_bytes: int) -> bytes:
    """The body without its Content-Encoding, one of CODINGS, or "" for none.

    Raises BodyTooLargeError beyond `most_bytes`, BodyDamagedError.
    """
    if coding == "gzip":
        return _gunzip(body, most_bytes)
    if coding == "zstd":
        return _unzstd(body, most_bytes)
    assert coding in ("", "identity")
    if len(body) > most_bytes:
        raise BodyTooLargeError
    return body


def _gunzip(body: bytes, most_bytes: int) -> bytes:
    out: list[bytes] = []
    room, members = most_bytes, 0
    inflate = None
    for at in range(0, len(body), CHUNK_BYTES):
        packed = body[at : at + CHUNK_BYTES]
        while packed:
            if inflate is None:
                members += 1
                if members > PIECES_MAX:
                    raise BodyDamagedError(f"more than {PIECES_MAX} gzip members")
                inflate = zlib.decompressobj(wbits=31)
            try:
                plain = inflate.decompress(packed, min(room + 1, CHUNK_BYTES))
            except zlib.error as error:
                raise BodyDamagedError(f"the gzip data is damaged: {error}") from None
            room -= len(plain)
            if room < 0:
                raise BodyTooLargeError
            out.append(plain)
            packed = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
            if inflate.eof:
                inflate = None
    if inflate is not None or not members:
        raise BodyDamagedError("the gzip data ends early")
    return b"".join(out)


def _unzstd(body: bytes, most_bytes: int) -> bytes:
    try:
        _check_frames(body, most_bytes)
        unpacker = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        with unpacker.stream_reader(io.BytesIO(body), read_across_frames=True) as reader:
            out, room = [], most_bytes
            while plain := reader.read(min(room + 1, CHUNK_BYTES)):
                room -= len(plain)
                if room < 0:
                    raise BodyTooLargeError
                out.append(plain)
    except zstandard.ZstdError as error:
        raise BodyDamagedError(f"the zstd data is damaged: {error}") from None
    return b"".join(out)


def _check_frames(body: bytes, most_bytes: int) -> None:
    """Walk the frames from header to header (RFC 8878, 3.1): zstd's reader takes a body that ends early for one that
    ends. Raises BodyDamagedError, BodyTooLargeError where a header already says so, ZstdError."""
    at = pieces = 0
    while at < len(body):
        if int.from_bytes(body[at : at + 4], "little") in _SKIPPABLE:
            at += 8 + int.from_bytes(body[at + 4 : at + 8], "little")
            pieces += 1
        else:
            at, blocks = _end_of_frame(body, at, most_bytes)
            pieces += blocks
        if pieces > PIECES_MAX:
            raise BodyDamagedError(f"more than {PIECES_MAX} zstd blocks")
    if at != len(body) or not body:
        raise BodyDamagedError("the zstd data ends early")


def _end_of_frame(body: bytes, start: int, most_bytes: int) -> tuple[int, int]:
    """Where the frame ends, or beyond the body if it is cut off, and how many blocks it has."""
    head = body[start : start + 18]  # the longest header
    parameters = zstandard.get_frame_parameters(head)
    if parameters.content_size != zstandard.CONTENTSIZE_UNKNOWN and parameters.content_size > most_bytes:
        raise BodyTooLargeError
    at, blocks, last = start + zstandard.frame_header_size(head), 0, False
    while not last and at < len(body) and blocks <= PIECES_MAX:
        block = int.from_bytes(body[at : at + 3], "little")
        last, kind, size = bool(block & 1), block >> 1 & 3, block >> 3
        at += 3 + (1 if kind == _RLE else size)
        blocks += 1
    return (at + (4 if parameters.has_checksum else 0) if last else len(body) + 1), blocks
