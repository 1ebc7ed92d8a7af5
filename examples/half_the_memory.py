"""Give a job memory for half its batch, and end with the curve of one that has enough.

    .venv/bin/python examples/half_the_memory.py

Trains one job three times on real trades, in micro-batches of 8: with memory for all 8 windows, for 4, for 1.
It runs on a CPU, so the shortage has to be pretended: see cramped.py. What follows is the trainer's own work:
the step is rolled back and its 24 samples go through in smaller micro-batches, each with the dropout mask it
had. The curves agree to rounding: where a sum of gradients is cut shows in its last digits only.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kill_and_compare import run

from app.client import Client
from app.datasets.demo import prepare_dataset

BATCH = 8
TOLERANCE = 1e-4  # of the losses, relative; accuracies may differ by a sample on the edge


def main() -> int:
    """Run the three jobs; exit code 0 when their curves are equal."""
    # The operator's leave for the model, and where it is.
    os.environ |= {"SAIMP_CUSTOM_MODELS": "cramped", "PYTHONPATH": str(Path(__file__).parent)}
    with tempfile.TemporaryDirectory(prefix="saimp-") as folder:
        root = Path(folder)
        dataset = prepare_dataset(root / "trades", root / "data", report=print)
        processes: list[subprocess.Popen[str]] = []
        try:
            run(root, "migrate").wait()
            processes.append(api := run(root, "api", "--port", "0"))
            assert api.stdout is not None
            client = Client(re.findall(r"http://\S+", api.stdout.readline())[0])
            processes.append(run(root, "worker"))
            curves = [train(client, dataset.path.name, room) for room in (BATCH, BATCH // 2, 1)]
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait()
    worst = max(difference(curves[0], curve) for curve in curves[1:])
    is_same = worst <= TOLERANCE
    print(f"\n{'the same curve' if is_same else 'DIFFERENT'}: losses differ by {worst:.1e} at most")
    return 0 if is_same else 1


def train(client: Client, path: str, room: int) -> list[dict[str, Any]]:
    """Train with memory for `room` windows; print what happened and return the epochs."""
    body = {
        "data": {"path": path},
        "model": {"name": "custom", "target": "cramped:Cramped", "params": {"room": room}},
        "training": {
            "epochs": 4,
            "batch_size": BATCH,
            "accumulation_steps": 3,
            "deterministic": True,
            "threads": 1,
        },
        "early_stopping": None,
    }
    print(f"\nmemory for {room} of {BATCH} windows")
    job_id = client.submit(body)["id"]
    while (job := client.job(job_id, wait=20))["finished_at"] is None:
        pass
    assert job["status"] == "succeeded", job["reason"]
    for event in client.events(job_id)["data"]:
        if event["kind"] == "oom_recovered":
            told = event["data"]
            print(f"   step {told['step']}: {told['message']}; again with {told['batch_size']}")
    epochs: list[dict[str, Any]] = client.metrics(job_id, scope=["epoch"])["epochs"]
    for row in epochs:
        print(
            f"   epoch {row['epoch']}  train loss {row['train_loss']:.6f}  val loss {row['val_loss']:.6f}"
            f"  val accuracy {row['val_accuracy']:.2%}"
        )
    return epochs


def difference(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> float:
    """Find the largest relative difference of two curves' losses."""
    return max(
        abs(a[name] - b[name]) / abs(a[name])
        for a, b in zip(first, second, strict=True)
        for name in ("train_loss", "val_loss")
    )


if __name__ == "__main__":
    sys.exit(main())
