"""Read a log file for display: by bytes or lines, invalid UTF-8 and control characters escaped."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any, BinaryIO

from app.text import escaped

MAX_LINE = 2**16
_BLOCK = 2**16


@dataclass(frozen=True, slots=True)
class Chunk:
    """Part of a log as text, and the byte offset behind it."""

    text: str
    end: int


class LogFile:
    """A log as it was when it was opened: `size` bytes, whatever is appended since."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = file.seek(0, io.SEEK_END)

    def read(self, offset: int, limit: int) -> Chunk:
        """Read at most `limit` bytes from `offset` on; a character is never cut."""
        self._file.seek(offset)
        raw = self._file.read(max(0, min(limit, self.size - offset)))
        raw = (
            raw[: len(raw) - _unfinished(raw)] or raw
        )  # `or`: a stray byte must not stop the reader for good
        return Chunk(shown(raw), offset + len(raw))

    def tail(self, lines: int, limit: int) -> Chunk:
        """Read the last lines, at most `limit` bytes of them."""
        return self.read(self._start_of_last(lines, limit), limit)

    def _start_of_last(self, lines: int, limit: int) -> int:
        if not lines:
            return self.size
        lowest = max(0, self.size - limit)
        start, wanted = self.size, lines + 1
        while start > lowest:
            length = min(_BLOCK, start - lowest)
            start -= length
            self._file.seek(start)
            block = self._file.read(length)
            if start + length == self.size and not block.endswith(b"\n"):
                wanted -= 1  # the last line is not ended yet
            found = block.count(b"\n")
            if found >= wanted:
                return start + _nth_last(block, wanted) + 1
            wanted -= found
        return start

    def search(self, text: str, *, offset: int, limit: int) -> dict[str, Any]:
        """Find the lines that hold `text`, whatever its case, as {data, has_more, next_offset}."""
        wanted = text.casefold()
        hits: list[dict[str, Any]] = []
        self._file.seek(offset)
        while offset < self.size:
            line = self._file.readline(min(MAX_LINE, self.size - offset))
            readable = shown(line.rstrip(b"\n"))
            if wanted in readable.casefold():
                if len(hits) == limit:
                    return {"data": hits, "has_more": True, "next_offset": offset}
                hits.append({"offset": offset, "text": readable})
            offset += len(line)
        return {"data": hits, "has_more": False, "next_offset": offset}


def shown(raw: bytes) -> str:
    """Decode for display; lines above 64 KiB are cut, and say so."""
    if len(raw) > MAX_LINE:
        raw = b"\n".join(_cut(line) for line in raw.split(b"\n"))
    return escaped(raw.decode("utf-8", "backslashreplace"), keep="\n\t")


def _cut(line: bytes) -> bytes:
    if len(line) <= MAX_LINE:
        return line
    kept = line[:MAX_LINE]
    kept = kept[: MAX_LINE - _unfinished(kept)]
    return kept + f" [cut: the line goes on for {len(line) - len(kept)} bytes]".encode()


def _unfinished(raw: bytes) -> int:
    """Count the bytes at the end that begin a character of UTF-8 and do not finish it."""
    for back in range(1, min(4, len(raw) + 1)):
        byte = raw[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return back if length > back else 0
        if byte < 0x80:
            return 0
    return 0


def _nth_last(block: bytes, number: int) -> int:
    place = len(block)
    for _ in range(number):
        place = block.rfind(b"\n", 0, place)
    return place
