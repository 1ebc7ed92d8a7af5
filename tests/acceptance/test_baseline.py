"""The baseline a model is measured by is one number, whoever tells it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.cli.service import service
from app.client import Client, Json
from app.jobs.states import FINAL
from tests.app.cli.call import saimp

BODY: Json = {
    "data": {
        "path": "prices",
        "window": 4,
        "horizon_s": 0.0,
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
        "classes": ["calm", "down", "up"],
    },
    "model": {"name": "mlp", "d_model": 8, "hidden": 8},
    "training": {"epochs": 1, "threads": 1},
}


def write_prices(folder: Path) -> None:
    """Write 300 rows: most of the first 180 are "calm", most of the rest "down"."""
    draw = np.random.default_rng(0)
    label = np.r_[draw.choice(3, 180, p=[0.7, 0.2, 0.1]), draw.choice(3, 120, p=[0.2, 0.7, 0.1])]
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "timestamp": pa.array(np.arange(300) * 1_000_000, pa.timestamp("us", tz="UTC")),
            "x": draw.standard_normal(300).astype(np.float32),
            "label": label,
        }
    )
    pq.write_table(table, folder / "part-0.parquet", write_page_checksum=True)


def ended(client: Client, job_id: str) -> Json:
    deadline = time.monotonic() + 60
    while (job := client.job(job_id, wait=5))["status"] not in FINAL:
        assert time.monotonic() < deadline, job
    return job


def test_card_terminal_and_api_tell_one_baseline(tmp_path: Path) -> None:
    write_prices(tmp_path / "data" / "prices")
    with (
        service(tmp_path / "data", tmp_path / "logs") as running,
        Client(running.wait_for_url(), patience_s=10) as client,
    ):
        counts = client.plan(BODY)["splits"]
        job = ended(client, client.submit(BODY)["id"])
        listed = client.jobs()["data"][0]
        shown = saimp("show", job["id"], url=client.url).stdout
    assert job["status"] == "succeeded", job["reason"]
    assert job["best"] == listed["best"]
    card = json.loads((tmp_path / "data" / "jobs" / job["id"] / "report.json").read_text())
    for split, told, judged in (
        ("val", job["best"], card["validation"]),
        ("test", job["test"], card["test"]),
    ):
        support = counts[split]["class_counts"]
        assert np.argmax(support) == 1 != np.argmax(counts["train"]["class_counts"])
        # Always "calm": its precision is its share, its recall 1; the other two have none.
        macro_f1 = 2 * support[0] / (sum(support) + support[0]) / 3
        majority = judged["baselines"]["majority"]
        assert (majority["class"], told["baseline_class"]) == ("calm", "calm")
        assert majority["macro_f1"] == told["baseline_macro_f1"] == pytest.approx(macro_f1)
        assert judged["baselines"]["class_prior"]["loss"] == told["baseline_loss"]
        assert told["macro_f1"] == judged["macro_f1"]
        assert told["mcc"] == judged["mcc"]
    assert "F1 of always calm" in shown
    assert re.search(rf"^macro-F1 .* {job['best']['baseline_macro_f1']:.3f}$", shown, re.MULTILINE)
