"""The best checkpoint on disk: plain weights, whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worker.engine.events import BestFile


def save_best(
    model: nn.Module,
    directory: Path,
    *,
    epoch: int,
    previous_loss: float | None,
    sidecar: Mapping[str, Any],
) -> BestFile:
    """Write the model's `state_dict` to an immutable file named by epoch and content, durable on return.

    Equal weights give equal bytes. Readable by `torch.load(path, weights_only=True)` on any machine.
    """
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    unnamed = directory / f".best-e{epoch:04d}.tmp"
    try:
        with unnamed.open("w+b") as file:
            # Through a file object: given a path, torch writes the file's name into the archive.
            torch.save(weights, file)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        name = f"best-e{epoch:04d}-{sha256[:16]}.pth"
        unnamed.rename(directory / name)
    finally:
        unnamed.unlink(missing_ok=True)
    _fsync_folder(directory)
    return BestFile(
        name=name,
        sha256=sha256,
        size=size,
        previous_loss=previous_loss,
        sidecar={**sidecar, "sha256": sha256, "epoch": epoch},
    )


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
