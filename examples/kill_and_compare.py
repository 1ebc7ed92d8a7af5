"""Kill the training process and the worker in mid-epoch, and end with the same bytes as without.

    .venv/bin/python examples/kill_and_compare.py

Trains one job twice in a folder of its own. The first run is left alone. In the second, the training process
and then the whole worker are killed with SIGKILL in mid-epoch. Both best checkpoints have the same sha256.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from app.client import Client
from app.datasets.demo import prepare_dataset

JOB: dict[str, Any] = {
    "model": {"name": "mlp"},
    # So gentle that each epoch is a little better than the one before: the best is the last.
    "loss": {"class_weights": None},
    "optimizer": {"lr": 1e-5},
    "training": {"epochs": 6, "deterministic": True, "threads": 1},
    "early_stopping": {"patience": None},
    "checkpoint": {"every_s": 0.2},
}


def main() -> int:
    """Run both jobs; exit code 0 when their checkpoints are equal."""
    with tempfile.TemporaryDirectory(prefix="saimp-") as folder:
        root = Path(folder)
        dataset = prepare_dataset(root / "trades", root / "data", report=print)
        body = {**JOB, "data": {"path": dataset.path.name}}
        processes: list[subprocess.Popen[str]] = []
        try:
            run(root, "migrate").wait()
            processes.append(api := run(root, "api", "--port", "0"))
            assert api.stdout is not None
            client = Client(re.findall(r"http://\S+", api.stdout.readline())[0])
            processes.append(worker := run(root, "worker"))

            print("\n1  undisturbed")
            left_alone = finish(client, client.submit(body)["id"])

            print("\n2  the same job, killed twice")
            job_id = client.submit(body)["id"]
            wait_for_epoch(client, job_id, 2)
            runner = runner_of(root, job_id)
            print(f"   epoch 2: kill -9 {runner}, the training process")
            os.kill(runner, signal.SIGKILL)
            wait_for_epoch(client, job_id, 4)
            print(f"   epoch 4: kill -9 {worker.pid}, the worker; then a new one is started")
            worker.kill()
            worker.wait()
            processes.append(run(root, "worker"))
            killed = finish(client, job_id)
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
        same = left_alone == killed
        print("\nthe same bytes" if same else "\nDIFFERENT")
        return 0 if same else 1


def run(root: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a part of the service on roots of its own, its output in a file but for the API's first line."""
    environment = {**os.environ, "SAIMP_DATA_ROOT": str(root / "data"), "SAIMP_LOGS_ROOT": str(root / "logs")}
    log = (root / "worker.out").open("a") if arguments[0] == "worker" else subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, "-m", "app.cli.main", *arguments], env=environment, stdout=log, text=True
    )


def wait_for_epoch(client: Client, job_id: str, epoch: int) -> None:
    """Wait until the job is in the middle of an epoch."""
    deadline = time.monotonic() + 120
    while True:
        progress = client.job(job_id)["progress"]
        if (progress["epoch"] or 0) >= epoch and (progress["batch"] or 0) > 50:
            return
        assert time.monotonic() < deadline, "the job does not get on"
        time.sleep(0.02)


def runner_of(root: Path, job_id: str) -> int:
    """Read the training process's pid from what the worker printed."""
    said = (root / "worker.out").read_text()
    return int(re.findall(rf"{job_id} attempt \d+ runs as process (\d+)", said)[-1])


def finish(client: Client, job_id: str) -> str:
    """Wait for the end of a job, print how it went, and return the sha256 of its best checkpoint."""
    deadline = time.monotonic() + 300
    while (job := client.job(job_id))["finished_at"] is None:
        assert time.monotonic() < deadline, "the job does not end"
        time.sleep(0.1)
    with tempfile.TemporaryDirectory() as folder:
        content = client.pull(job_id, Path(folder) / "saimp_best.pth").read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    resumed = [event["data"] for event in client.events(job_id)["data"] if event["kind"] == "resumed"]
    for at in resumed:
        print(f"   resumed at epoch {at['epoch']}, batch {at['batch']}")
    print(f"   {job['status']} after {job['attempt']} attempts, best epoch {job['best']['epoch']}")
    print(f"   sha256 {sha256}")
    return sha256


if __name__ == "__main__":
    sys.exit(main())
