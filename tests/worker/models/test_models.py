"""Every model: any shape runs, rows shared by windows change nothing, and what is saved comes back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F

from app.jobs.config import MlpConfig, ModelConfig, VivitConfig
from worker.models import CorruptCheckpoint, build_model, flops_per_sample, load, num_parameters
from worker.models.base import SequenceModel
from worker.models.vivit import Block, Vivit

torch.set_num_threads(1)

SMALL: dict[str, ModelConfig] = {
    "vivit": VivitConfig(d_model=8, heads=2, layers=2, dropout=0.3),
    "vivit-one-layer": VivitConfig(d_model=8, heads=1, layers=1, dropout=0.3),
    "mlp": MlpConfig(d_model=6, hidden=7, dropout=0.3),
}
each_model = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL.keys())


def make_model(config: ModelConfig, *, window: int, shape: tuple[int, ...] = (2, 6)) -> SequenceModel:
    torch.manual_seed(0)
    return build_model(config, window=window, shape=shape, num_classes=4).double()


def loss_and_gradients(model: SequenceModel, logits_BK: Tensor) -> list[Tensor]:
    loss = F.cross_entropy(logits_BK, torch.arange(len(logits_BK)) % 4)
    return [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))]


@each_model
@settings(max_examples=25, deadline=None)
@given(
    window=st.integers(1, 6), starts=st.lists(st.integers(0, 9), min_size=1, max_size=7), dense=st.booleans()
)
def test_sharing_rows_changes_no_number_under_dropout(
    config: ModelConfig, window: int, starts: list[int], dense: bool
) -> None:
    model = make_model(config, window=window).train()
    starts_B = torch.arange(len(starts)) if dense else torch.tensor(starts)
    rows_RF = torch.randn(int(starts_B.max()) + window, 2, 6, dtype=torch.float64)
    x_BTF = rows_RF[starts_B.unsqueeze(1) + torch.arange(window)]

    torch.manual_seed(1)
    plain = loss_and_gradients(model, model(x_BTF))
    torch.manual_seed(1)
    shared = loss_and_gradients(model, model.forward_rows(rows_RF, starts_B, dense))
    for expected, found in zip(plain, shared, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@each_model
def test_encoding_a_row_does_not_depend_on_the_rows_beside_it_or_on_chance(config: ModelConfig) -> None:
    model = make_model(config, window=3).train()
    rows_RF = torch.randn(5, 2, 6, dtype=torch.float64)
    alone = torch.cat([model.encode(row_F.unsqueeze(0)) for row_F in rows_RF])
    torch.testing.assert_close(model.encode(rows_RF), alone, rtol=1e-12, atol=1e-12)


@each_model
def test_each_window_has_a_dropout_mask_of_its_own(config: ModelConfig) -> None:
    model = make_model(config, window=3).train()
    rows_RF = torch.randn(1, 2, 6, dtype=torch.float64).expand(9, 2, 6)
    logits_BK = model.forward_rows(rows_RF, torch.arange(7), True)
    assert len({tuple(row) for row in logits_BK.tolist()}) > 1


@each_model
@pytest.mark.parametrize(
    "shape", [(1,), (3,), (33,), (100,), (700,), (4, 128), (3, 1), (2, 3, 5), (1, 2, 3, 4)], ids=str
)
@pytest.mark.parametrize("window", [1, 5])
def test_any_shape_runs_forward_and_backward(
    config: ModelConfig, shape: tuple[int, ...], window: int
) -> None:
    model = build_model(config, window=window, shape=shape, num_classes=3)
    logits_BK = model(torch.randn(2, window, *shape))
    assert logits_BK.shape == (2, 3)
    torch.autograd.backward(logits_BK.sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16], ids=str)
@each_model
def test_half_precision_runs_forward_and_backward(config: ModelConfig, precision: torch.dtype) -> None:
    model = build_model(config, window=3, shape=(2, 6), num_classes=3)
    with torch.autocast("cpu", precision):
        logits_BK = model(torch.randn(2, 3, 2, 6))
    torch.autograd.backward(logits_BK.float().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("window", [1, 2, 7])
def test_the_last_query_alone_gives_the_last_step_of_the_full_layer(window: int) -> None:
    torch.manual_seed(0)
    block = Block(d_model=8, heads=2, dropout=0.5).double().eval()
    x_BTD = torch.randn(3, window, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x_BTD, num_queries=1), block(x_BTD)[:, -1:], rtol=1e-12, atol=1e-12)


def test_vivit_sees_every_row_and_their_order() -> None:
    model = make_model(SMALL["vivit"], window=5).eval()
    x_BTF = torch.randn(1, 5, 2, 6, dtype=torch.float64)
    logits_BK = model(x_BTF)
    assert not torch.allclose(model(x_BTF.flip(1)), logits_BK)
    for t in range(5):
        changed_BTF = x_BTF.clone()
        changed_BTF[:, t] += 1
        assert not torch.allclose(model(changed_BTF), logits_BK)


@each_model
def test_the_same_seed_gives_the_same_weights(config: ModelConfig) -> None:
    first, second = make_model(config, window=3), make_model(config, window=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_default_vivit_has_the_size_and_cost_it_is_known_for() -> None:
    config = VivitConfig()
    model = build_model(config, window=32, shape=(4, 128), num_classes=4)
    assert isinstance(model, Vivit)
    assert num_parameters(model) == sum(p.numel() for p in model.state_dict().values()) == 967_876
    flops = flops_per_sample(config, window=32, shape=(4, 128), num_classes=4)
    # Two convolutions and the projection of a row, counted by hand.
    row = 2 * (64 * 4 * 3 * 128 + 128 * 64 * 3 * 64 + 4096 * 128)
    assert 32 * row < flops < 32 * row * 1.2


def test_flops_of_an_mlp_are_its_matrix_products() -> None:
    flops = flops_per_sample(MlpConfig(d_model=6, hidden=7), window=3, shape=(5,), num_classes=2)
    assert flops == 2 * (3 * 5 * 6 + 18 * 7 + 7 * 2)


def save(folder: Path, config: ModelConfig, **changes: Any) -> Path:
    """Save a model as its best checkpoint, sidecar beside it."""
    model = build_model(config, window=3, shape=(2, 6), num_classes=4)
    path = folder / "saimp_best.pth"
    torch.save(model.state_dict(), path)
    sidecar = {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "config": {"model": TypeAdapter(ModelConfig).dump_python(config, mode="json")},
        "shapes": {"window": 3, "row": [2, 6], "num_classes": 4},
    }
    path.with_suffix(".json").write_text(json.dumps({**sidecar, **changes}))
    return path


@each_model
def test_a_best_checkpoint_comes_back_ready_to_use(config: ModelConfig, tmp_path: Path) -> None:
    path = save(tmp_path, config)
    model, sidecar = load(path)
    assert not model.training
    assert sidecar["shapes"]["row"] == [2, 6]
    saved = torch.load(path, weights_only=True)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in model.state_dict().items())


def test_a_checkpoint_that_is_not_the_sidecars_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, SMALL["mlp"], sha256="0" * 64)
    with pytest.raises(CorruptCheckpoint, match="its sidecar says 000"):
        load(path)
