"""Checkpoints on disk: immutable, named by content, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from app.failpoints import failpoint
from worker.engine.events import BestFile
from worker.models.about import carry


@dataclass(frozen=True, slots=True)
class Written:
    """A file on disk, named by its content."""

    name: str
    sha256: str
    size: int


def save_best(
    model: nn.Module,
    directory: Path,
    *,
    epoch: int,
    previous_loss: float | None,
    sidecar: Mapping[str, Any],
) -> BestFile:
    """Write the model's `state_dict` to an immutable file named by epoch and content, durable on return.

    What using the model takes travels in it. Equal weights of equal models give equal bytes, whichever job
    they are of. Readable by `torch.load(path, weights_only=True)` on any machine.
    """
    state = model.state_dict()
    weights = OrderedDict((name, tensor.detach().cpu()) for name, tensor in state.items())
    carry(weights, state, sidecar)
    written = write(weights, directory, f"best-e{epoch:04d}", ".pth")
    return BestFile(
        name=written.name,
        sha256=written.sha256,
        size=written.size,
        previous_loss=previous_loss,
        sidecar={**sidecar, "sha256": written.sha256, "epoch": epoch},
    )


def write(
    content: Any, directory: Path, stem: str, suffix: str, is_abandoned: Callable[[], bool] = lambda: False
) -> Written:
    """Save tensors to an immutable file `{stem}-{sha256[:16]}{suffix}`: whole and durable, or not there.

    is_abandoned: asked as it goes; raises Abandoned. A failed fsync is never repeated, since the kernel has
    dropped the pages by then: all is written once more, to a new file.
    """
    try:
        return _write(content, directory, stem, suffix, is_abandoned)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
    return _write(content, directory, stem, suffix, is_abandoned)


def _write(
    content: Any, directory: Path, stem: str, suffix: str, is_abandoned: Callable[[], bool]
) -> Written:
    unnamed = directory / f".{stem}.tmp"
    kind = stem.partition("-")[0]
    failpoint(f"{kind}.before_write")
    try:
        with unnamed.open("wb") as file:
            hashing = _Hashing(file, kind, is_abandoned)
            # Through a file object: given a path, torch writes the file's name into the archive.
            torch.save(content, hashing)  # type: ignore[arg-type]
            file.flush()
            failpoint(f"{kind}.before_fsync")
            os.fsync(file.fileno())
        sha256 = hashing.digest.hexdigest()
        name = f"{stem}-{sha256[:16]}{suffix}"
        failpoint(f"{kind}.before_rename")
        unnamed.rename(directory / name)
        failpoint(f"{kind}.after_rename")
    finally:
        unnamed.unlink(missing_ok=True)
    _fsync_folder(directory)
    return Written(name, sha256, hashing.size)


class Abandoned(Exception):
    """Nobody wants the file any more."""


class _Hashing:
    """What torch writes to: the bytes go to the file and into their hash, in order."""

    def __init__(self, file: BinaryIO, kind: str, is_abandoned: Callable[[], bool]) -> None:
        self.digest = hashlib.sha256()
        self.size = 0
        self._file = file
        self._kind = kind
        self._is_abandoned = is_abandoned

    def write(self, data: bytes) -> int:
        if self._is_abandoned():
            raise Abandoned
        self.digest.update(data)
        self.size += len(data)
        written = self._file.write(data)
        failpoint(f"{self._kind}.mid_write")
        return written

    def flush(self) -> None:
        self._file.flush()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read the weights a best checkpoint holds, on the CPU."""
    weights: dict[str, torch.Tensor] = torch.load(path, weights_only=True, map_location="cpu")
    return weights


def _fsync_folder(directory: Path) -> None:
    # Without it the rename itself may be lost in a power failure.
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
