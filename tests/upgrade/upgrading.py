"""A data root of an older version, brought to this one, and its jobs to their end."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.jobs.files import Paths
from app.migrate import migrate
from tests.postgres.server import fresh_database, url_of
from tests.processes import Process, started
from tests.upgrade.life import Service, service
from tests.upgrade.write_roots import ROOT, archive

Json = dict[str, Any]

# A job whose process was killed has told more than its last answer may have held.
KILLED = "killed"


@dataclass(frozen=True)
class Upgraded:
    """The API of this version on an older root. No worker is there before `at_work`."""

    root: Path
    url: str
    api: Service

    @contextmanager
    def at_work(self) -> Iterator[Process]:
        """Have a worker of this version for the length of the block."""
        more = {"SAIMP_DATABASE_URL": self.url} if self.url else {}
        with started("-m", "worker", root=self.root, **more) as worker:
            worker.says("worker ready")
            yield worker
            assert worker.stop() == 0, worker.output

    def go_on(self, served: Mapping[str, Json]) -> dict[str, str]:
        """Let all that waits be gone on with to its end: names of jobs, and their ids.

        What is paused is resumed; what is cancelled is retried, as "again".
        """
        ids = {name: str(told["job"]["id"]) for name, told in served.items()}
        for name, told in served.items():
            if told["job"]["status"] == "paused":
                self.api.post(f"/jobs/{ids[name]}/resume")
        ids["again"] = str(self.api.post(f"/jobs/{ids['cancelled']}/retry")["id"])
        with self.at_work():
            for name, job_id in ids.items():
                final = served.get(name, {}).get("job", {}).get("status")
                self.api.reaches(job_id, final if final in ("failed", "cancelled") else "succeeded")
        return ids

    def champion(self) -> str:
        return sha256(self.root / "data" / "saimp_best.pth")

    def checkpoints(self) -> set[Path]:
        return set((self.root / "data" / "jobs").glob("*/attempts/*/resume-*.pt"))


@contextmanager
def upgraded(root: Path) -> Iterator[Upgraded]:
    """Bring a root to this version, its database restored from `dump.sql` where it has one, and serve it."""
    with ExitStack() as stack:
        url = ""
        if (root / "dump.sql").exists():
            database = stack.enter_context(fresh_database(is_migrated=False))
            raw = database.write_engine.raw_connection()
            raw.cursor().execute((root / "dump.sql").read_text())
            raw.commit()
            raw.close()
            url = url_of(database)
        paths = Paths(root / "data", root / "logs")
        migrate(url or f"sqlite:///{root / 'data' / 'saimp.db'}", paths)
        yield Upgraded(root, url, stack.enter_context(service(ROOT, root, url, part="api")))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpacked(commit: str, engine: str, folder: Path) -> Path:
    """Lay out the root of a version."""
    with tarfile.open(archive(commit, engine)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def known(commit: str, name: str) -> Any:
    """Read what is known of a version: "names"."""
    with tarfile.open(archive(commit, "sqlite")) as packed:
        file = packed.extractfile(f"{name}.json")
        assert file is not None
        return json.load(file)


def weights(root: Path, job_id: str) -> dict[str, torch.Tensor]:
    """Read the best of a job. Its file may hold more than weights, and does so since some version."""
    content = (root / "data" / "jobs" / job_id / "saimp_best.pth").read_bytes()
    found: dict[str, torch.Tensor] = torch.load(io.BytesIO(content), weights_only=True)
    return found
