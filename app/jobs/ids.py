"""Job ids: ULIDs, so that they sort by the time they were made."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford base 32
_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Make an id of 26 characters that sorts after every id this process made before.

    48 bits of milliseconds, then 80 random ones. Source: the ULID specification.
    """
    global _last
    with _lock:
        _last = max(_last + 1, (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80))
        number = _last
    return "".join(_ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
