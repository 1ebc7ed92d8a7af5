"""A service for tests: the application over HTTP, and the queue that drives its jobs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from starlette.testclient import TestClient

from app.api.services import Services
from app.jobs.files import Paths
from app.jobs.queue import Claim, Facts, Queue
from app.main import create_app
from app.migrate import upgrade
from app.settings import Settings
from tests.factories import OWNER, SLOT, make_request, write_dataset

AT = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Service:
    client: TestClient
    services: Services

    @property
    def queue(self) -> Queue:
        return self.services.queue

    @property
    def paths(self) -> Paths:
        return self.services.paths

    def job(self, **sections: Any) -> str:
        """Queue a job behind the API's back."""
        row, _ = self.queue.submit(make_request(**sections))
        return str(row.id)

    def claimed(self, **sections: Any) -> Claim:
        """Queue a job and claim it."""
        self.job(**sections)
        claim = self.queue.claim(OWNER, SLOT)
        assert claim is not None
        return claim

    def logged(self, text: bytes) -> str:
        """Make a running job with a log."""
        claim = self.claimed()
        name = self.paths.create_log(AT)
        self.paths.log(name).write_bytes(text)
        self.queue.record(claim.job_id, claim.attempt, Facts(progress={"log_name": name}))
        return claim.job_id

    def saved(self, content: bytes) -> str:
        """Make a running job with a best checkpoint."""
        claim = self.claimed()
        self.save(claim, content)
        return claim.job_id

    def save(self, claim: Claim, content: bytes, epoch: int = 1) -> Path:
        """Save the best checkpoint of an attempt."""
        digest = hashlib.sha256(content).hexdigest()
        name = f"attempts/{claim.attempt}/best-{epoch}-{digest[:12]}.pth"
        path = self.paths.job(claim.job_id) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        best = {
            "best_epoch": epoch,
            "best_val_loss": 1.0 / epoch,
            "best_val_accuracy": 0.5,
            "best_file": name,
            "best_sha256": digest,
            "best_bytes": len(content),
        }
        self.queue.record(claim.job_id, claim.attempt, Facts(progress=best))
        return path


@contextmanager
def service(root: Path) -> Iterator[Service]:
    """Run the application on a migrated database, with a dataset called demo."""
    settings = Settings(data_root=root / "data", logs_root=root / "logs")
    app = create_app(settings)
    services: Services = app.state.services
    upgrade(services.database)
    write_dataset(settings.data_root / "demo")
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield Service(client, services)


def batch(epoch: int, number: int, loss: float | None = 1.0) -> dict[str, Any]:
    """Make a batch row."""
    return {
        "epoch": epoch,
        "batch": number,
        "step": number + 1,
        "loss": loss,
        "accuracy": 0.5,
        "lr": 1e-4,
        "grad_norm": None,
        "time": AT + timedelta(seconds=number),
    }


def epoch(number: int, confusion: list[list[int]] | None = None) -> dict[str, Any]:
    """Make an epoch row."""
    return {
        "epoch": number,
        "time": AT,
        "train_loss": 1.2,
        "train_accuracy": 0.4,
        "val_loss": 1.3,
        "val_accuracy": 0.5,
        "best": True,
        "lr": 1e-4,
        "duration_s": 2.0,
        "samples_per_s": 100.0,
        "ece": None,
        "confusion": confusion or [[3, 1], [1, 3]],
        "ram_peak": 1,
        "vram_peak": None,
        "skipped_steps": 0,
    }


def system(second: int, rss: int = 1) -> dict[str, Any]:
    """Make a telemetry row."""
    numbers = ("vram_used", "vram_total", "vram_process", "vram_torch_peak", "gpu_percent", "gpu_temperature")
    return {
        "time": AT + timedelta(seconds=second),
        "ram_used": 1,
        "ram_total": 2,
        "process_rss": rss,
        "cpu_percent": 3.0,
        **dict.fromkeys(numbers),
    }
