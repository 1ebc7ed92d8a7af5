"""What an older version did not write down, and what its silence stands for: one rule for all it left behind.

A field that comes later is listed here with the value that gives the bits of before. With that value it is
not there: for `config_hash`, the comparison key, an Idempotency-Key, memory seen before, and where a resume
checkpoint must agree. So an upgrade changes the name of nothing. `tests/upgrade` misses a field that is not
listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Fields of a job's body, by their path; in a section of several kinds its name is part of it
# ("model.vivit.heads"). The value is the default of today.
BODY: Mapping[str, Any] = {}

# Fields of `data` that the first comparison keys left out, though bodies had them.
COMPARED: Mapping[str, Any] = {"data.group": None, "data.non_finite": "error", "data.fold": None}


def resolved(stored: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the `resolved` of a job with the keys that came after it was settled."""
    return {
        # Every run began at the top of the OOM ladder.
        "share_rows": True,
        "activation_checkpointing": config["training"]["activation_checkpointing"],
        # Keys and values were laid out until shortly after rows were shared or not.
        "lays_out_keys": "share_rows" not in stored,
        **stored,
    }


def counted(
    config: Mapping[str, Any], later: Mapping[str, Any] | None = None, *, under: str = ""
) -> dict[str, Any]:
    """Leave out of a config, or of its section `under`, what came later and is as it was before.

    later: null = BODY.
    """
    listed = BODY if later is None else later
    found = {}
    for name, value in config.items():
        path = f"{under}.{name}" if under else name
        if isinstance(value, Mapping):
            kind = value.get("name")
            value = counted(value, listed, under=f"{path}.{kind}" if isinstance(kind, str) else path)
        if path not in listed or value != listed[path]:
            found[name] = value
    return found
