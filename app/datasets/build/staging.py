"""A folder that appears whole or not at all."""

from __future__ import annotations

import ctypes
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from app.datasets.build.errors import CannotWrite, TargetExists
from app.errors import shown

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def check_target(target: Path, source: Path, *, replace: bool) -> None:
    """Refuse a target that is taken, or that `replace` would destroy though `data build` did not make it.

    Raises TargetExists.
    """
    real, real_source = target.resolve(), source.resolve()
    if real == real_source or real in real_source.parents or real_source in real.parents:
        raise TargetExists(
            f"The dataset {target} and the trades {source} lie one inside the other.",
            "Write the dataset somewhere else.",
        )
    if not os.path.lexists(target):
        return
    if not replace:
        raise TargetExists(f"{target} exists already.", "Use --replace, or another name.")
    if not _is_built_dataset(target):
        raise TargetExists(
            f"{target} holds more than a dataset made by `saimp data build`; it is not replaced.",
            "Move it away, or use another name.",
        )


@contextmanager
def staged(target: Path, *, replace: bool) -> Iterator[Path]:
    """Give an empty folder beside `target` that becomes it on success and vanishes on failure.

    With replace an existing target is exchanged in one step where the system can do that (Linux), so that
    it is there, old or new, at every moment. Raises CannotWrite when the disk does not allow it.
    """
    target = Path(os.path.abspath(target))
    staging = target.parent / f".{target.name}.building-{secrets.token_hex(4)}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        try:
            yield staging
            _publish(staging, target, replace=replace)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    except OSError as error:
        raise CannotWrite(
            f"{target.name} cannot be written: {shown(error.strerror or error, 120)}.",
            "Check the free space and the permissions of its folder.",
        ) from error


def _publish(staging: Path, target: Path, *, replace: bool) -> None:
    if os.path.lexists(target):
        if not replace:
            raise TargetExists(f"{target} appeared while the dataset was built.", "Use --replace.")
        if not _exchange(staging, target):
            _swap(staging, target)
    else:
        staging.rename(target)
    _sync_folder(target.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names atomically; False where the system cannot."""
    if sys.platform != "linux":
        return False
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(done == 0)


def _swap(staging: Path, target: Path) -> None:
    old = staging.with_name(f"{staging.name}-old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _is_built_dataset(target: Path) -> bool:
    if target.is_symlink() or not target.is_dir():
        return False
    entries = list(target.iterdir())
    return all(entry.suffix == ".parquet" and entry.is_file() for entry in entries) and all(
        _has_metadata(entry) for entry in entries
    )


def _has_metadata(path: Path) -> bool:
    try:
        return b"saimp" in (pq.read_schema(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
