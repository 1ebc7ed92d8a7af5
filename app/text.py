"""Text of strangers made safe to show: nothing in it moves a cursor, ends a line or turns text around."""

from __future__ import annotations

import re
import unicodedata

_SUSPECT = re.compile(r"[^ -~]")


def escaped(text: str, *, keep: str = "") -> str:
    """Write what no reader could see as its code: \\x1b, \\u202e. Letters of every script and spaces stay.

    keep: control characters that are wanted here, such as line breaks.
    """
    return _SUSPECT.sub(lambda found: found[0] if found[0] in keep else _shown(found[0]), text)


def _shown(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
