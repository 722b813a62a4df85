"""Unpacking: every packed form comes back, every damage is seen, and no bomb unfolds."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc
import zlib

import pytest
import zstandard

from harmonywatch.gateway.bodies import PIECES_MAX, BodyDamagedError, BodyTooLargeError, unpack

LIMIT = 16 << 20
TEXT = b"the tram was late again; " * 4000
RLE_BOMB = bytes.fromhex("28b52ffd") + b"\x00\x58" + b"\x02\x00\x10a" * 9_000 + b"\x03\x00\x10a"


@pytest.mark.parametrize(
    ("coding", "packed"),
    [
        ("gzip", gzip.compress(TEXT)),
        ("gzip", b"".join(gzip.compress(TEXT[at : at + 777]) for at in range(0, len(TEXT), 777))),
        ("gzip", b"".join(gzip.compress(part) for part in (b"", TEXT, b""))),
        ("zstd", zstandard.compress(TEXT)),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compress(TEXT)),
        ("zstd", b"".join(zstandard.compress(TEXT[at : at + 7777]) for at in range(0, len(TEXT), 7777))),
        ("zstd", zstandard.compress(TEXT[:9]) + b"\x50\x2a\x4d\x18\x03\x00\x00\x00xyz" + zstandard.compress(TEXT[9:])),
        ("identity", TEXT),
        ("", TEXT),
    ],
)
def test_what_was_packed_comes_back(coding: str, packed: bytes) -> None:
    assert unpack(packed, coding, LIMIT) == TEXT
    assert unpack(packed, coding, len(TEXT)) == TEXT
    with pytest.raises(BodyTooLargeError):
        unpack(packed, coding, len(TEXT) - 1)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
def test_a_body_cut_anywhere_is_damaged(coding: str) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    text = random.Random(seed).randbytes(300) + TEXT[:300]
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    packed = gzip.compress(text) if coding == "gzip" else compressor.compress(text)
    for length in range(len(packed)):
        with pytest.raises(BodyDamagedError):
            unpack(packed[:length], coding, LIMIT)
    with pytest.raises(BodyDamagedError):
        unpack(packed + b"rubbish", coding, LIMIT)


@pytest.mark.parametrize(
    ("coding", "bomb"),
    [
        ("gzip", gzip.compress(bytes(1 << 30), 1)),
        ("gzip", gzip.compress(bytes(4 << 20)) * 500),
        ("zstd", zstandard.compress(bytes(1 << 30))),
        ("zstd", zstandard.ZstdCompressor(write_content_size=False).compress(bytes(256 << 20))),
        ("zstd", RLE_BOMB),
    ],
    ids=["gzip", "gzip members", "zstd", "zstd of unsaid size", "zstd of runs"],
)
def test_a_bomb_never_unfolds(coding: str, bomb: bytes) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(BodyTooLargeError):
            unpack(bomb, coding, LIMIT)
        assert tracemalloc.get_traced_memory()[1] < LIMIT + (2 << 20)
    finally:
        tracemalloc.stop()


def test_a_body_of_countless_pieces_is_damaged() -> None:
    for coding, packed in (
        ("gzip", gzip.compress(b"") * (PIECES_MAX + 1)),
        ("zstd", zstandard.compress(b"") * (PIECES_MAX + 1)),
    ):
        with pytest.raises(BodyDamagedError, match="more than"):
            unpack(packed, coding, LIMIT)


def test_a_window_longer_than_any_body_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=False)
    packer = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = packer.compress(TEXT) + packer.flush()
    with pytest.raises(BodyDamagedError):
        unpack(packed, "zstd", LIMIT)


def test_rubbish_is_damaged_and_never_more_than_that() -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")  # noqa: T201
    rng = random.Random(seed)
    for coding, good in (("gzip", gzip.compress(TEXT)), ("zstd", zstandard.compress(TEXT))):
        for _ in range(500):
            broken = bytearray(good)
            for _ in range(rng.randint(1, 4)):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(BodyDamagedError, BodyTooLargeError):
                unpack(bytes(broken), coding, LIMIT)
    with pytest.raises(BodyDamagedError):
        unpack(zlib.compress(TEXT), "gzip", LIMIT)
