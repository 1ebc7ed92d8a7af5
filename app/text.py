"""Text of strangers made safe to show: nothing in it moves a cursor, ends a line or turns text around."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

_SUSPECT = re.compile(r"[^ -~]")


def code(character: str) -> str:
    """Write a character as Python would: \\x1b, \\u202e, \\U000e0001."""
    point = ord(character)
    return f"\\x{point:02x}" if point < 0x100 else f"\\u{point:04x}" if point < 0x10000 else f"\\U{point:08x}"


def escaped(text: str, *, keep: str = "", write: Callable[[str], str] = code) -> str:
    """Write what no reader could see by its code. Letters of every script and spaces stay.

    keep: control characters that are wanted here, such as line breaks.
    """

    def shown(found: re.Match[str]) -> str:
        character = found[0]
        if character in keep or character.isprintable() or unicodedata.category(character) == "Zs":
            return character
        return write(character)

    return _SUSPECT.sub(shown, text)
