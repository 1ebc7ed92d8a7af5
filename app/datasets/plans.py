"""Plans by the content of their data, kept on disk: who plans the same again reads no rows.

A plan is a pure function of the dataset's fingerprint and a few fields of the request, so a file is named by
them and never changes. It is a cache: a file that is missing, damaged or cannot be written costs a pass.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from app.datasets.schema import Dataset
from app.datasets.split import PartPlan, SplitPlan, WindowRun, plan_split
from app.jobs.config import DataConfig, canonical

VERSION = 2  # of the rules and of the files: another one finds nothing here
MAX_FILES, MAX_BYTES = 256, 256 * 2**20
# Fields of the data section that change no plan: clones that differ in these alone share one.
_FREE = {"path", "features", "shape", "normalize", "shuffle", "shuffle_buffer", "shuffle_run", "non_finite"}

_PARTS = ("train", "val", "test")


def planned(
    dataset: Dataset,
    data: DataConfig,
    folder: Path | None,
    *,
    class_weights: Sequence[float] | None = None,
    deadline: float | None = None,
) -> SplitPlan:
    """Return plan_split's plan, from `folder` when it is there, else kept there for the next one.

    folder: null = always plan. Raises what plan_split raises.
    """
    if folder is None:
        return plan_split(dataset, data, class_weights=class_weights, deadline=deadline)
    path = folder / f"{_key(dataset, data, class_weights)}.npz"
    plan = _read(path)
    if plan is None:
        plan = plan_split(dataset, data, class_weights=class_weights, deadline=deadline)
        with suppress(OSError):
            _write(path, plan)
            _prune(folder)
    return plan


def _key(dataset: Dataset, data: DataConfig, class_weights: Sequence[float] | None) -> str:
    named = {
        "version": VERSION,
        "fingerprint": dataset.fingerprint,
        "data": data.model_dump(mode="json", exclude=_FREE),
        "class_weights": None if class_weights is None else list(class_weights),
    }
    return hashlib.sha256(canonical(named).encode()).hexdigest()


def _read(path: Path) -> SplitPlan | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            plan = _restored(json.loads(found["plan"].tobytes()), found)
        _touch(path)
    except (OSError, ValueError, TypeError, KeyError, EOFError, BadZipFile):
        return None
    return plan


def _restored(about: dict[str, Any], runs: Mapping[str, Any]) -> SplitPlan:
    def part(name: str) -> PartPlan | None:
        if about[name] is None:
            return None
        known = {**about[name], "class_counts": tuple(about[name]["class_counts"])}
        return PartPlan(**known, runs=tuple(WindowRun(*run) for run in runs[name].tolist()))

    known: dict[str, Any] = {name: tuple(about[name]) for name in ("groups", "classes", "cuts_ns")}
    known["ahead_ns"] = None if about["ahead_ns"] is None else tuple(about["ahead_ns"])
    warnings = tuple((code, message) for code, message in about["warnings"])
    parts = {name: part(name) for name in _PARTS}
    return SplitPlan(**{**about, **known, **parts, "warnings": warnings})


def _write(path: Path, plan: SplitPlan) -> None:
    """Write whole or not at all. Raises OSError."""
    bare = {name: replace(part, runs=()) for name, part in plan.parts.items()}
    about = asdict(replace(plan, **bare))  # type: ignore[arg-type]
    for name in bare:
        del about[name]["runs"]
    arrays = {
        name: np.array([(run.group, run.first, run.count) for run in part.runs], np.int64).reshape(-1, 3)
        for name, part in plan.parts.items()
    }
    path.parent.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as draft:
        try:
            np.savez(draft, plan=np.frombuffer(json.dumps(about).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
            draft.close()
            _touch(Path(draft.name))
            os.replace(draft.name, path)
        except BaseException:
            Path(draft.name).unlink(missing_ok=True)
            raise


def _touch(path: Path) -> None:
    """Stamp with a clock finer than the kernel's own stamps, which tie within a tick."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _prune(folder: Path) -> None:
    """Remove what was not used for longest, beyond the bounds."""
    found = sorted(((path, path.stat()) for path in folder.iterdir()), key=lambda one: -one[1].st_mtime_ns)
    num_bytes = 0
    for number, (path, status) in enumerate(found, 1):
        num_bytes += status.st_size
        if number > MAX_FILES or (num_bytes > MAX_BYTES and number > 1):
            path.unlink(missing_ok=True)
