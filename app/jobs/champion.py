"""The champion: the best of the comparable jobs, or the one a user has pinned."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.failpoints import failpoint
from app.jobs.files import Paths, sidecar
from app.jobs.placing import link, read_json, sync, write_json

About = dict[str, Any]


def crown(paths: Paths, job_id: str) -> bool:
    """Let a job that has ended with a best become the champion, if it is one. Returns whether it did.

    It replaces the champion if there is none, if the two are not comparable (newest data wins), or if its
    validation loss is lower; one that is pinned it leaves alone.
    """
    ours = _about(paths.best(job_id))
    if _standing(ours) is None:
        return False
    with _alone(paths):
        if _stays(_about(paths.champion()), ours):
            return False
        link(sidecar(paths.best(job_id)), sidecar(paths.champion()))
        failpoint("crown.between_links")
        link(paths.best(job_id), paths.champion())
        sync(paths.data_root)
    return True


def promote(paths: Paths, weights: Path) -> bool:
    """Make a best checkpoint the champion and pin it: only another promotion replaces it.

    weights: immutable, its description beside it; without that, nothing happens. Returns whether it is done.
    """
    about = _about(weights)
    if about is None:
        return False
    with _alone(paths):
        write_json(sidecar(paths.champion()), {**about, "pinned": True})
        link(weights, paths.champion())
        sync(paths.data_root)
    return True


@contextmanager
def _alone(paths: Paths) -> Iterator[None]:
    """Keep others from the champion's two files: the worker crowns, the API promotes."""
    with open(paths.champion_lock(), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _stays(champion: About | None, other: About | None) -> bool:
    """Whether the champion is kept. The same once more is not: a crash may have left half of it."""
    if champion is None or other is None:
        return False
    if champion.get("pinned"):
        return True
    if champion == other:
        return False
    theirs, ours = _standing(champion), _standing(other)
    return theirs is not None and ours is not None and theirs[0] == ours[0] and theirs[1] <= ours[1]


def _about(weights: Path) -> About | None:
    return read_json(sidecar(weights)) if weights.exists() else None


def _standing(about: About | None) -> tuple[str, float] | None:
    """Read a checkpoint's comparison key and validation loss; null when it is not one of ours."""
    try:
        return None if about is None else (str(about["comparison_key"]), float(about["metrics"]["val_loss"]))
    except (KeyError, TypeError, ValueError):
        return None
