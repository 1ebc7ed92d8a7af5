"""What is trained can be used: the best checkpoint loads, and gives the scores its job has told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq
import pytest

from app.jobs.config import CustomConfig, ModelConfig
from app.jobs.queue import Row
from app.jobs.states import Status
from tests.acceptance.site import QUICK, Site, ended, open_queue, submit, worker
from tests.factories import write_dataset
from worker.models import load
from worker.predict import predict

CUSTOM = ["tests.worker"]
WINDOW = 4
SMALL = {"d_model": 8, "hidden": 8, "channels": 4, "heads": 2, "layers": 1}
# Every model there is: a new one is tried without a word here.
MODELS: dict[str, dict[str, Any]] = {
    name: {"name": name, **{field: size for field, size in SMALL.items() if field in config.model_fields}}
    for config in get_args(get_args(ModelConfig)[0])
    if config is not CustomConfig
    for name in [config.model_fields["name"].default]
} | {
    f"custom-{target}": {"name": "custom", "target": f"tests.worker.models.custom_nets:{target}"}
    for target in ("Windows", "Rows", "Precise")
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("use")
    with open_queue(root) as queue, worker(root, SAIMP_CUSTOM_MODELS=",".join(CUSTOM)) as process:
        write_dataset(root / "data" / "prices", rows=240, center=3.0, spread=2.0)
        yield Site(root, queue, process)


@pytest.mark.parametrize("normalize", ["none", "standard", "robust"])
@pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
def test_a_trained_model_gives_its_jobs_validation_scores(
    site: Site, tmp_path: Path, model: dict[str, Any], normalize: str
) -> None:
    data = {
        **QUICK["data"],
        "path": "prices",
        "window": WINDOW,
        "normalize": normalize,
        "split": {"train": 0.6, "val": 0.2, "test": 0.2},
    }
    row = ended(site.queue, submit(site.queue, data=data, model=model))
    assert row.status == Status.SUCCEEDED, row.reason_message
    checkpoint = site.root / "data" / "jobs" / row.id / "saimp_best.pth"
    assert all(
        number.dtype.itemsize <= 4 for number in load(checkpoint, allowed_prefixes=CUSTOM)[0].buffers()
    )
    source = site.root / "data" / "prices"
    predict(checkpoint, str(source), tmp_path / "p.parquet", allowed_prefixes=CUSTOM)
    loss, accuracy = validation_scores(row, pq.read_table(source), pq.read_table(tmp_path / "p.parquet"))
    assert (loss, accuracy) == pytest.approx((row.best_val_loss, row.best_val_accuracy), rel=1e-5)


@pytest.mark.parametrize("name", ["mlp", "custom-Windows"])
def test_a_job_starts_from_a_normalised_model(site: Site, name: str) -> None:
    data = {**QUICK["data"], "path": "prices", "normalize": "standard"}
    gentle = {"name": "sgd", "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}
    first = ended(site.queue, submit(site.queue, data=data, model=MODELS[name]))
    second = ended(
        site.queue,
        submit(site.queue, data=data, model=MODELS[name], init_from=first.id, optimizer=gentle),
    )
    assert second.status == Status.SUCCEEDED, second.reason_message
    assert second.best_val_loss == pytest.approx(first.best_val_loss, rel=1e-6)


def validation_scores(row: Row, rows: Any, predictions: Any) -> tuple[float, float]:
    """Score the predictions of the windows that a job validated on: weighted loss and accuracy."""
    val = row.plan["splits"]["val"]
    times = np.array([time.isoformat() for time in rows["timestamp"].to_pylist()])
    first, last = (int(np.flatnonzero(times == as_iso(val[key]))[0]) for key in ("start", "end"))
    ends = np.arange(first + WINDOW - 1, last + 1)
    assert len(ends) == val["windows"]
    labels = np.asarray(rows["label"])[ends]
    found_BK = np.array(predictions["probabilities"].to_pylist())[ends - (WINDOW - 1)]
    weights = np.array([1.0, 10.0, 10.0, 20.0])[labels]
    losses = -np.log(found_BK[np.arange(len(ends)), labels])
    return float((weights * losses).sum() / weights.sum()), float((found_BK.argmax(1) == labels).mean())


def as_iso(time: str) -> str:
    return time.replace("Z", "+00:00")
