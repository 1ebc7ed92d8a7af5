"""Files put in place whole: made beside, then renamed. A reader sees the old one or the new one."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from app.failpoints import failpoint


def link(source: Path, target: Path) -> None:
    """Make `target` another name of the file `source`."""
    draft = target.with_name(f".{target.name}.tmp")
    draft.unlink(missing_ok=True)
    os.link(source, draft)
    os.replace(draft, target)
    draft.unlink(missing_ok=True)  # of two names of one file, rename leaves both


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON file that is on the disk before it has its name."""
    draft = path.with_name(f".{path.name}.tmp")
    with open(draft, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    failpoint("sidecar.before_rename")
    os.replace(draft, path)


def read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; null when there is none."""
    with suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else None
    return None


def sync(directory: Path) -> None:
    """Make the names in a directory outlive a power cut."""
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
