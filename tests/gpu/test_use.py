"""What was trained on a GPU with halves is used on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.rig.choices import FORMATS, MODELS, Cell
from tests.rig.use import Site, site, use

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("use")) as running:
        yield running


@pytest.mark.parametrize("number", range(len(MODELS)), ids=MODELS.keys())
def test_a_model_trained_on_a_gpu_can_be_used_on_a_cpu(number: int, at: Site, tmp_path: Path) -> None:
    form = FORMATS[number % len(FORMATS)]
    cell = Cell(list(MODELS)[number], "standard", "list", "cross_entropy", "ema", form, "precision=fp16")
    job = use(cell, at, tmp_path)
    assert job["resolved"]["device"].startswith("cuda")
