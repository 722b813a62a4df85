"""A bound on bytes held at once. Used from the event loop alone, so it needs no lock."""

from __future__ import annotations


class Budget:
    """Counts bytes that something holds; says no beyond `most_bytes`."""

    __slots__ = ("held_bytes", "most_bytes")

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self.held_bytes = 0

    def take(self, size_bytes: int) -> bool:
        """Hold so many bytes more, unless that is too much. A single holder is never too much: limits of size bound
        it already, and a request larger than the whole budget must not be turned away for ever."""
        if self.held_bytes and self.held_bytes + size_bytes > self.most_bytes:
            return False
        self.held_bytes += size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        """Let go of bytes taken before."""
        assert 0 <= size_bytes <= self.held_bytes
        self.held_bytes -= size_bytes
