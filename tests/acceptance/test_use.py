"""What is trained can be used: cells of the use matrix, each from a file on disk to the used model.

Any two choices come together in a cell here; `make soak` walks through all combinations.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_type_hints

import pyarrow.parquet as pq
import pytest
import torch

from app.datasets.features import Features
from tests.processes import environment
from tests.rig import choices
from tests.rig.choices import CUSTOM, OPTIONS, Cell
from tests.rig.use import Site, best_epoch, body_of, ended, site, use

torch.set_num_threads(1)

CELLS = choices.pairs()


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("use")) as running:
        yield running


@pytest.mark.parametrize("cell", CELLS, ids=[cell.id for cell in CELLS])
def test_a_trained_model_can_be_used(cell: Cell, at: Site, tmp_path: Path) -> None:
    use(cell, at, tmp_path)


@pytest.mark.parametrize(
    "cell",
    [
        Cell("vivit", "standard", "matrix", "focal", "group", "onnx"),
        Cell("lstm", "robust", "columns", "cross_entropy", "7 classes", "safetensors"),
        Cell("custom-Windows", "standard", "binary", "ordinal", "ema", "torch_export"),
    ],
    ids=lambda cell: cell.id,
)
def test_a_trained_model_can_be_used_from_the_command_line(cell: Cell, at: Site, tmp_path: Path) -> None:
    data = at.data(cell.layout, OPTIONS[cell.option], has_holes=False)
    (tmp_path / "job.json").write_text(json.dumps(body_of(cell, data)))
    job = ended(at.client, saimp(at, tmp_path, "submit", "job.json").strip())
    assert saimp(at, tmp_path, "pull", job["id"]).strip() == "saimp_best.pth"
    held_out = at.root / "data" / data.name / "held_out.parquet"
    told = json.loads(saimp(at, tmp_path, "predict", "saimp_best.pth", str(held_out), "--out", "p.parquet"))
    best = best_epoch(at.client, job)
    assert told["scores"]["loss"] == pytest.approx(best["val_loss"], rel=1e-5)
    assert told["scores"]["confusion"] == best["confusion"]
    assert pq.read_table(tmp_path / "p.parquet").num_rows == told["windows"]
    path = saimp(at, tmp_path, "export", "saimp_best.pth", "--format", cell.format).strip()
    assert (tmp_path / path).stat().st_size > 0


def saimp(at: Site, folder: Path, *arguments: str) -> str:
    """Run the command line in a folder of the user's; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli.main", *arguments],
        cwd=folder,
        env=environment(at.root, SAIMP_URL=at.client.url, SAIMP_CUSTOM_MODELS=CUSTOM),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_field_of_a_job_is_tried_or_excused() -> None:
    assert choices.unplaced() == []


def test_every_layout_of_the_features_is_tried() -> None:
    assert set(choices.LAYOUTS.values()) == set(get_args(get_type_hints(Features)["layout"]))


def test_any_two_choices_come_together() -> None:
    tried = {pair for cell in CELLS for pair in choices.pairs_of(cell)}
    assert tried == {pair for cell in choices.product() for pair in choices.pairs_of(cell)}
    assert {cell.setting for cell in CELLS} == set(choices.settings())
