"""The SQLite file itself: whether it is still the one that was opened, whether it is whole, its backup."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

from app.errors import StorageDamaged

BACKUP_EVERY_S = 24 * 3600.0
# On these, SQLite's locks or its shared memory are not to be trusted.
NETWORK = ("nfs", "cifs", "smb", "fuse.sshfs", "ceph", "glusterfs", "lustre", "afs", "9p")

Identity = tuple[int, int]


def identity(path: Path) -> Identity | None:
    """Return what tells a file from another one of the same name: its device and inode; null when gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def refuse_damaged(path: Path, backup: Path) -> None:
    """Read the whole file, which must exist, and compare. Raises StorageDamaged with the way out."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30.0)) as file:
            (verdict,) = file.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError:
        return  # it does not answer just now; whoever needs it will say so
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise damaged(f"{path.name} is damaged: {str(verdict).splitlines()[-1]}", backup)


def damaged(what: str, backup: Path) -> StorageDamaged:
    """Say what is wrong with the file, and how to get going again."""
    substitute = "that"
    if backup.exists():
        made = time.strftime("%Y-%m-%d %H:%M", time.localtime(backup.stat().st_mtime))
        substitute = f"that or {backup.name} (made {made})"
    return StorageDamaged(
        f"{what}.",
        "Nothing is written to it. Stop the service, save what can be read with"
        f' `sqlite3 saimp.db ".recover" | sqlite3 new.db`, and put {substitute} in its place.',
    )


def back_up(path: Path, backup: Path) -> bool:
    """Copy the database to `backup`, whole or not at all; False when that is not due or there is no room."""
    is_due = not backup.exists() or time.time() - backup.stat().st_mtime > BACKUP_EVERY_S
    if not is_due or shutil.disk_usage(path.parent).free < 4 * path.stat().st_size:
        return False
    refuse_damaged(path, backup)
    draft = backup.with_suffix(".tmp")
    draft.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(path, isolation_level=None, timeout=30.0)) as file:
            file.execute("VACUUM INTO ?", (str(draft),))
        draft.replace(backup)
    finally:
        draft.unlink(missing_ok=True)
    return True


def network_file_system(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str | None:
    """Name the network file system a path lies on; null when it lies on a disk, or nobody knows."""
    found = ("", "")
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            _, where, kind, *_ = line.split()
            where = where.replace("\\040", " ")
            is_above = where == "/" or os.path.commonpath([where, path.absolute()]) == where
            if is_above and len(where) >= len(found[0]):
                found = (where, kind)
    return found[1] if found[1].startswith(NETWORK) else None
