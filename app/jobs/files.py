"""Every path and file name of the product, derived from the two roots."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

BEST_NAME = "saimp_best.pth"
# What a best is exported as, beside it: safetensors, ONNX, torch.export.
EXPORT_SUFFIXES = (".safetensors", ".onnx", ".pt2")


@dataclass(frozen=True, slots=True)
class Paths:
    data_root: Path
    logs_root: Path

    def job(self, job_id: str) -> Path:
        return self.data_root / "jobs" / job_id

    def attempt(self, job_id: str, attempt: int) -> Path:
        """The folder one attempt writes its immutable files to."""
        return self.job(job_id) / "attempts" / str(attempt)

    def best(self, job_id: str) -> Path:
        return self.job(job_id) / BEST_NAME

    def exports(self, job_id: str) -> list[Path]:
        """Where the best is exported to, in the formats there are."""
        return [self.best(job_id).with_suffix(suffix) for suffix in EXPORT_SUFFIXES]

    def database_backup(self) -> Path:
        return self.data_root / "saimp-backup.db"

    def plans(self) -> Path:
        """Where plans are kept by the content of their data."""
        return self.data_root / ".plans"

    def champion(self) -> Path:
        return self.data_root / BEST_NAME

    def token(self) -> Path:
        return self.data_root / ".token"

    def worker_lock(self, device: str | None = None) -> Path:
        """What the supervisor of a slot holds; the device is null for the one slot of a machine."""
        return self.data_root / f".worker{_suffix(device)}.lock"

    def worker_slot(self, device: str | None = None) -> Path:
        """The name of a slot, for good."""
        return self.data_root / f".worker{_suffix(device)}.slot"

    def log(self, log_name: str) -> Path:
        return self.logs_root / f"{log_name}.txt"

    def plot(self, log_name: str) -> Path:
        return self.logs_root / f"{log_name}.png"

    def create_log(self, at: datetime) -> str:
        """Create the log of a first claim at `at` (UTC) and return its name, with a suffix if it is taken."""
        self.logs_root.mkdir(parents=True, exist_ok=True)
        stem = f"train_run_{at:%Y%m%d_%H%M%S}"
        number = 1
        while True:
            name = stem if number == 1 else f"{stem}_{number}"
            try:
                self.log(name).touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return name


def _suffix(device: str | None) -> str:
    return "" if device is None else "." + device.replace(":", "-")


def sidecar(weights: Path) -> Path:
    """The JSON beside a checkpoint: saimp_best.pth -> saimp_best.json."""
    return weights.with_suffix(".json")
