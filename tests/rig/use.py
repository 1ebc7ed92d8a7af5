"""Trains through the service and uses the result, cell by cell of the matrix in `tests.rig.choices`.

    python -m tests.rig.use --cells 100 --first 0

Each job is submitted over HTTP and its checkpoint downloaded. It has to load as plain weights, with its
sidecar and without it; to give the job's own validation scores on the held-out file; and to give the same
probabilities exported and loaded by the runtime of the format, and computed from the numbers on file.

Shapes: R rows, E numbers of a row, B windows, T rows in a window, K classes.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from app.client import Client
from app.jobs.states import FINAL
from tests.processes import eventually, started
from tests.rig.choices import (
    CUSTOM,
    LOSSES,
    MODELS,
    NORMALIZE,
    OPTIONS,
    Body,
    Cell,
    Option,
    product,
    settings,
)
from worker.export import Format, export
from worker.models import SequenceModel, load
from worker.predict import predict

T, NUM_ELEMENTS, TRAIN_ROWS, VAL_ROWS = 4, 4, 156, 48
GROUPS = ("a", "b")
LISTENING = "listening on "
JOB: Body = {
    "data": {"window": T, "horizon_s": 0.0},
    "optimizer": {"lr": 1e-2},
    "training": {"epochs": 2, "threads": 1},
    "precision": "fp32",
}
# As long as it takes to pause it and to end it.
ENDLESS: Body = {"training": {"epochs": 100_000}, "early_stopping": {"patience": None}}
TOLERANCE = 1e-5  # of float32
HALVES_TOLERANCE = 5e-2  # validated with halves, used without

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Data:
    """A dataset below the data root: a file to train on and one held out, and what was written to it."""

    name: str
    shape: tuple[int, ...]  # of a row
    rows_RE: Floats  # of the held-out file
    groups_R: list[str]
    val_from: str
    body: Body  # what the section `data` has to say of it


@dataclass(frozen=True, slots=True)
class Site:
    """A whole service at work: API and worker, as `saimp up` runs them."""

    root: Path
    client: Client

    def data(self, layout: str, option: Option, *, has_holes: bool) -> Data:
        """Have a dataset of this layout."""
        return write_data(self.root / "data", layout, option, has_holes=has_holes)


@contextmanager
def site(root: Path) -> Iterator[Site]:
    """Run a service for the length of the block."""
    arguments = ("-m", "app.cli.main", "up", "--port", "0")
    with started(*arguments, root=root, SAIMP_CUSTOM_MODELS=CUSTOM) as process:
        url = process.says(LISTENING).removeprefix(LISTENING)
        with Client(url) as client:
            yield Site(root, client)


def write_data(root: Path, layout: str, option: Option, *, has_holes: bool) -> Data:
    """Write labels that can be learnt from numbers around 3, a second apart; two groups share each second."""
    num_groups = len(GROUPS) if option.is_grouped else 1
    draw = np.random.default_rng(option.classes)
    num_rows = TRAIN_ROWS + VAL_ROWS
    values_RE = draw.standard_normal((num_rows, NUM_ELEMENTS)).astype(np.float32)
    bounds = np.quantile(values_RE[:, 0], np.arange(1, option.classes) / option.classes)
    labels_R = np.digitize(values_RE[:, 0], bounds).astype(np.int64)
    values_RE = (2 * values_RE + 3).astype(np.float32)
    if layout in ("binary", "one"):
        values_RE = values_RE.astype(np.float16).astype(np.float32)
    if layout == "one":
        values_RE = values_RE[:, :1]
    if has_holes:
        values_RE[[20, TRAIN_ROWS + 10], -1] = np.nan
    seconds_R = np.arange(num_rows) // num_groups
    groups_R = [GROUPS[row % num_groups] for row in range(num_rows)]
    columns, body, metadata = _laid_out(values_RE, layout)
    table = pa.table(
        {
            "timestamp": pa.array(seconds_R * 1_000_000, pa.timestamp("us", tz="UTC")),
            **columns,
            "label": pa.array(labels_R),
            **({"symbol": pa.array(groups_R)} if option.is_grouped else {}),
        }
    ).replace_schema_metadata(metadata)
    holes = "-holes" if has_holes else ""
    name = f"{layout}-{option.classes}-{num_groups}{holes}"
    folder = root / name
    if not folder.exists():
        folder.mkdir(parents=True)
        pq.write_table(table.slice(0, TRAIN_ROWS), folder / "train.parquet", row_group_size=50)
        pq.write_table(table.slice(TRAIN_ROWS), folder / "held_out.parquet", row_group_size=20)
    val_from = f"1970-01-01T00:{seconds_R[TRAIN_ROWS] // 60:02}:{seconds_R[TRAIN_ROWS] % 60:02}Z"
    shape = tuple(body.get("shape", values_RE.shape[1:]))
    return Data(name, shape, values_RE[TRAIN_ROWS:], groups_R[TRAIN_ROWS:], val_from, body)


def _laid_out(values_RE: Floats, layout: str) -> tuple[dict[str, Any], Body, dict[str, str] | None]:
    """Store the numbers of a row in one of the layouts: columns, what the job says of them, metadata."""
    match layout:
        case "list" | "matrix":
            size = values_RE.shape[1]
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values_RE.ravel()), size)
            return {"features": lists}, {"shape": [2, size // 2]} if layout == "matrix" else {}, None
        case "binary":
            rows = [row.astype("<f2").tobytes() for row in values_RE]
            about = {"version": 1, "dtype": "float16", "shape": [values_RE.shape[1]]}
            stored = pa.array(rows, pa.binary(2 * values_RE.shape[1]))
            return {"features": stored}, {}, {"saimp": json.dumps(about)}
        case "columns":
            kinds = [pa.float64(), pa.float32()]
            names = [f"f{element}" for element in range(values_RE.shape[1])]
            return (
                {
                    name: pa.array(values_RE[:, element]).cast(kinds[element % 2])
                    for element, name in enumerate(names)
                },
                {},
                None,
            )
        case _:
            return {"price": pa.array(values_RE[:, 0])}, {}, None


def body_of(cell: Cell, data: Data, **changes: Any) -> Body:
    """Write the job of a cell."""
    option = OPTIONS[cell.option]
    body: Body = {"model": MODELS[cell.model], "loss": LOSSES[cell.loss]}
    own = {"path": data.name, "normalize": cell.normalize, "split": {"val_from": data.val_from}, **data.body}
    for part in (JOB, {"data": own}, option.body, settings()[cell.setting], changes):
        body = merged(body, part)
    if body["optimizer"].get("name", "adamw") != "adamw":
        body["optimizer"].pop("lr", None)
    return body


def merged(body: Mapping[str, Any], changes: Mapping[str, Any]) -> Body:
    """Merge objects into objects."""
    return {
        **body,
        **{
            key: merged(body[key], value)
            if isinstance(value, dict) and isinstance(body.get(key), dict)
            else value
            for key, value in changes.items()
        },
    }


def use(cell: Cell, at: Site, folder: Path) -> Body:
    """Walk the whole way of one cell; return its job. Raises AssertionError where it does not arrive."""
    has_holes = cell.setting.startswith("data.non_finite")
    data = at.data(cell.layout, OPTIONS[cell.option], has_holes=has_holes)
    job = trained(cell, at, data)
    checkpoint = at.client.pull(job["id"], folder)
    model = loaded(checkpoint, folder)
    held_out = at.root / "data" / data.name / "held_out.parquet"
    found = predict(checkpoint, held_out, folder / "predictions.parquet", allowed_prefixes=[CUSTOM])
    best = best_epoch(at.client, job)
    assert found.scores is not None
    assert found.windows == found.scores["windows"] == job_windows(at.client, job)
    has_halves = body_of(cell, data)["precision"] in ("fp16", "bf16")
    tolerance = HALVES_TOLERANCE if has_halves else TOLERANCE
    assert math.isclose(found.scores["loss"], best["val_loss"], rel_tol=tolerance)
    if not has_halves:
        assert found.scores["confusion"] == best["confusion"]
        assert found.scores["accuracy"] == best["val_accuracy"] == job["best"]["val_accuracy"]
    windows_BTE = held_out_windows(data, body_of(cell, data)["data"])
    x_BTF = torch.from_numpy(windows_BTE).view(len(windows_BTE), T, *data.shape)
    predicted_BK = probabilities(folder / "predictions.parquet")
    with torch.inference_mode():
        torch.testing.assert_close(model(x_BTF).softmax(-1), predicted_BK, rtol=1e-4, atol=TOLERANCE)
    if cell.format:
        logits_BK = exported(cell.format, checkpoint, folder)(x_BTF)
        torch.testing.assert_close(logits_BK.softmax(-1), predicted_BK, rtol=1e-4, atol=TOLERANCE)
    return job


def trained(cell: Cell, at: Site, data: Data) -> Body:
    """Train a cell's job over HTTP to an end, and return it."""
    client, option = at.client, OPTIONS[cell.option]
    changes: Body = {}
    if option.has_parent:
        # Another normaliser, if there is one: each job keeps its own.
        other = NORMALIZE[NORMALIZE.index(cell.normalize) - 1]
        parent = client.submit(merged(body_of(cell, data), {"data": {"normalize": other}}))
        changes = {"init_from": ended(client, parent["id"])["id"]}
    if option.is_paused:
        changes = ENDLESS
    job = client.submit(body_of(cell, data, **changes))
    if option.is_paused:
        pause_and_go_on(client, job["id"])
        client.cancel(job["id"])
        job = client.wait(job["id"], timeout_s=60)
        assert job["status"] == "cancelled", job["reason"]
        return job
    return ended(client, job["id"])


def ended(client: Client, job_id: str) -> Body:
    job = client.wait(job_id, timeout_s=60)
    assert job["status"] == "succeeded", job["reason"]
    return job


def pause_and_go_on(client: Client, job_id: str) -> None:
    """Pause a job in its training, and wait until it has trained on for an epoch."""
    eventually(lambda: (client.job(job_id)["progress"]["epoch"] or 0) >= 2, what="epoch 2")
    client.pause(job_id)
    eventually(lambda: client.job(job_id)["status"] == "paused", what="the pause")
    epoch = client.job(job_id)["progress"]["epoch"]
    client.resume(job_id)
    eventually(lambda: client.job(job_id)["progress"]["epoch"] > epoch, what="an epoch after the pause")


def best_epoch(client: Client, job: Body) -> Body:
    """Find the metrics of the epoch a job's best is of."""
    assert job["status"] in FINAL
    after, rows = None, []
    while True:
        page = client.metrics(job["id"], scope=["epoch"], after=after)
        rows += page["epochs"]
        if not page["epochs"] or page["next_after"] == after:
            break
        after = page["next_after"]
    (best,) = [row for row in rows if row["epoch"] == job["best"]["epoch"]]
    assert best["val_loss"] == job["best"]["val_loss"]
    return dict(best)


def job_windows(client: Client, job: Body) -> int:
    """Count the windows a job validated on."""
    return sum(map(sum, best_epoch(client, job)["confusion"]))


def loaded(checkpoint: Path, folder: Path) -> SequenceModel:
    """Load a checkpoint in every way there is; they have to agree."""
    weights = torch.load(checkpoint, weights_only=True)
    model, about = load(checkpoint, allowed_prefixes=[CUSTOM])
    model.load_state_dict(weights)
    assert all(number.dtype.itemsize <= 4 for number in model.buffers())
    alone = folder / "alone"
    alone.mkdir()
    other, essence = load(shutil.copy(checkpoint, alone), allowed_prefixes=[CUSTOM])
    assert essence["sha256"] == about["sha256"]
    assert essence["classes"] == about["classes"]
    assert all(torch.equal(ours, weights[name]) for name, ours in other.state_dict().items())
    return model


def exported(form: str, checkpoint: Path, folder: Path) -> Callable[[Tensor], Tensor]:
    """Export a checkpoint and load it with the runtime of the format."""
    path = export(checkpoint, cast(Format, form), folder / f"exported.{form}", allowed_prefixes=[CUSTOM])
    match form:
        case "safetensors":
            model, _ = load(checkpoint, allowed_prefixes=[CUSTOM])
            model.load_state_dict(load_file(path))
            return lambda x_BTF: model(x_BTF).detach()
        case "onnx":
            session = onnxruntime.InferenceSession(path.read_bytes(), providers=["CPUExecutionProvider"])
            return lambda x_BTF: torch.from_numpy(session.run(["logits"], {"rows": x_BTF.numpy()})[0])
        case _:
            assert form == "torch_export", f"{form}: load it here with its own runtime"
            with path.open("rb") as file:
                program = torch.export.load(file).module()
            return lambda x_BTF: program(x_BTF).detach()


def held_out_windows(data: Data, asked: Body) -> Floats:
    """Cut the windows of the held-out file from the numbers that were written to it, [B, T, E]."""
    stride, rule = asked.get("stride", 1), asked.get("non_finite", "error")
    rows_RE = np.nan_to_num(data.rows_RE) if rule == "zero" else data.rows_RE
    seen: dict[str, list[int]] = {}
    windows = []
    for row, group in enumerate(data.groups_R):
        own = seen.setdefault(group, [])
        own.append(row)
        window_TE = rows_RE[own[-T:]]
        if len(own) >= T and (len(own) - T) % stride == 0 and np.isfinite(window_TE).all():
            windows.append(window_TE)
    return np.stack(windows)


def probabilities(path: Path) -> Tensor:
    """Read the columns `prob_<class>` of predictions, [B, K]."""
    table = pq.read_table(path)
    names = [name for name in table.column_names if name.startswith("prob_")]
    return torch.from_numpy(np.stack([table[name].to_numpy() for name in names], axis=1))


def main() -> int:
    """Read the options, walk through some cells, print how many."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="cells done before; they begin again at the end")
    options = parser.parse_args()
    began = time.monotonic()
    torch.set_num_threads(1)
    cells = product()
    with tempfile.TemporaryDirectory(prefix="saimp-use-") as folder, site(Path(folder)) as at:
        for number in range(options.first, options.first + options.cells):
            cell = cells[number % len(cells)]
            with tempfile.TemporaryDirectory(dir=folder) as own:
                try:
                    use(cell, at, Path(own))
                except Exception as error:
                    raise AssertionError(f"cell {number}: {cell}") from error
    seconds = round(time.monotonic() - began, 1)
    print(json.dumps({"cells": options.cells, "of": len(cells), "seconds": seconds}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
