"""Every model learns: a small set by heart, and handwritten digits it has not seen.

The digits are scikit-learn's (8 x 8 pixels; Alpaydin, Kaynak 1998), each read as 8 rows of 8 pixels from
Parquet, through the real stream, split and trainer.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from app.datasets.schema import open_dataset
from app.datasets.split import plan_split
from app.jobs.config import JobRequest
from tests.worker.engine.factory import SHAPE, WINDOW, make_request, make_run, make_samples, train, weights_of
from worker.engine.events import EpochDone, Tested
from worker.engine.loop import fit
from worker.engine.resolve import resolve
from worker.engine.run import build_run
from worker.engine.samples import Splits
from worker.models import build_model
from worker.stream.stream import Stream

torch.set_num_threads(1)

# Held-out accuracy each reaches in the epochs below; guessing is right in 10 %, naming one digit too.
MODELS: dict[str, tuple[dict[str, Any], float]] = {
    "vivit": ({"d_model": 32, "heads": 4, "layers": 2}, 0.90),
    "transformer": ({"d_model": 32, "heads": 4, "layers": 2}, 0.94),
    "tcn": ({"d_model": 32}, 0.95),
    "lstm": ({"d_model": 32, "hidden": 64}, 0.91),
    "gru": ({"d_model": 32, "hidden": 64}, 0.94),
    "cnn_lstm": ({"channels": 16, "hidden": 32}, 0.95),
    "mlp": ({"d_model": 16, "hidden": 64}, 0.95),
}
EPOCHS = 8
SMALL: dict[str, dict[str, Any]] = {
    "vivit": {"d_model": 8, "heads": 2, "layers": 2},
    "transformer": {"d_model": 8, "heads": 2, "layers": 2},
    "tcn": {"d_model": 6, "kernel_size": 2},
    "lstm": {"d_model": 5, "hidden": 6, "layers": 2},
    "gru": {"d_model": 5, "hidden": 6, "layers": 2},
    "cnn_lstm": {"channels": 3, "hidden": 5},
    "mlp": {"d_model": 6, "hidden": 7},
}
each_model = pytest.mark.parametrize("name", MODELS)


@each_model
def test_a_small_set_is_learnt_by_heart(name: str) -> None:
    """20 windows of noise with labels at random: nothing but memory can tell them."""
    torch.manual_seed(0)
    fields = {**MODELS[name][0], "dropout": 0.0}
    request = make_request(model={"name": name, **fields})
    model = build_model(request.model, window=WINDOW, shape=SHAPE, num_classes=4)
    x_BTF = torch.randn(20, WINDOW, *SHAPE)
    labels_B = torch.randint(4, (20,))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x_BTF), labels_B)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    assert torch.equal(model.eval()(x_BTF).argmax(-1), labels_B)


@each_model
def test_any_cut_of_the_step_trains_the_same_weights_with_dropout(name: str) -> None:
    model = {"name": name, **SMALL[name], "dropout": 0.3}
    found = []
    for batch_size in (15, 4, 1):
        training = {"batch_size": batch_size, "effective_batch": 15, "epochs": 1, "deterministic": True}
        samples = make_samples(34, stride=2 if name == "tcn" else 1)
        run = make_run(make_request(model=model, training=training), train=samples, dtype=torch.float64)
        train(run)
        found.append(weights_of(run))
    torch.use_deterministic_algorithms(False)
    for weights in found[1:]:
        torch.testing.assert_close(weights, found[0], rtol=1e-12, atol=1e-12)


@each_model
@pytest.mark.parametrize("training", [{"activation_checkpointing": True}, {"ema_decay": 0.5}], ids=str)
def test_every_model_trains_with_what_the_trainer_offers(name: str, training: dict[str, Any]) -> None:
    model = {"name": name, **SMALL[name]}
    request = make_request(model=model, training={**training, "epochs": 1}, precision="fp16")
    run = make_run(request, train=make_samples(34))
    (done,) = (event for event in train(run) if isinstance(event, EpochDone))
    assert math.isfinite(done.val_loss)


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with the digits in a random order: row r is line r % 8 of digit r // 8."""
    datasets = pytest.importorskip("sklearn.datasets")
    images_N88, labels_N = datasets.load_digits(return_X_y=True)
    order_N = np.random.default_rng(0).permutation(len(labels_N))
    rows_RF = (images_N88[order_N].reshape(-1, 8) / 16.0).astype(np.float32)
    root = tmp_path_factory.mktemp("digits")
    table = pa.table(
        {
            "timestamp": pa.array(np.arange(len(rows_RF)) * 1_000_000).cast(pa.timestamp("us")),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(rows_RF.ravel()), 8),
            "label": pa.array(np.repeat(labels_N[order_N], 8)),
        }
    )
    pq.write_table(table, root / "digits.parquet", row_group_size=1000)
    return root


@each_model
def test_digits_never_seen_are_read(name: str, digits: Path, tmp_path: Path) -> None:
    fields, accuracy = MODELS[name]
    request = JobRequest.model_validate(
        {
            "data": {
                "path": "digits.parquet",
                "window": 8,
                "stride": 8,
                "split": {"train": 0.7, "val": 0.1, "test": 0.2},
            },
            "model": {"name": name, **fields},
            "optimizer": {"name": "adamw", "lr": 5e-3},
            "schedule": {"name": "cosine", "warmup_steps": 20},
            "training": {
                "batch_size": "auto",
                "effective_batch": 32,
                "epochs": EPOCHS,
                "threads": 1,
                "clip_grad_norm": 1.0,
            },
            "early_stopping": None,
            "device": "cpu",
        }
    )
    dataset = open_dataset(digits, request.data)
    plan = plan_split(dataset, request.data)
    streams = {part: Stream(dataset, plan, part) for part in plan.parts}
    run = build_run(
        request,
        resolve(request, num_classes=plan.num_classes),
        shape=dataset.features.shape,
        num_classes=plan.num_classes,
        splits=Splits(streams["train"], streams["val"], streams["test"]),
        directory=tmp_path,
    )
    events = list(fit(run))
    epochs = [event for event in events if isinstance(event, EpochDone)]
    (tested,) = (event for event in events if isinstance(event, Tested))
    assert len(epochs) == EPOCHS
    assert tested.accuracy >= accuracy
