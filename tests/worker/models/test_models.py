"""Every model: any shape runs, rows shared by windows change nothing, and what is saved comes back."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from app.jobs.config import (
    CnnLstmConfig,
    GruConfig,
    LstmConfig,
    MlpConfig,
    ModelConfig,
    TcnConfig,
    TransformerConfig,
    VivitConfig,
)
from worker.engine.precision import Precision
from worker.models import build_model, flops_per_sample, load, num_parameters
from worker.models.attention import Block
from worker.models.base import SequenceModel
from worker.models.cnn_lstm import _highest_of_3
from worker.models.tcn import CausalBlock, Tcn, layers_to_see
from worker.models.vivit import Vivit

torch.set_num_threads(1)

SMALL: dict[str, ModelConfig] = {
    "vivit": VivitConfig(d_model=8, heads=2, layers=2, dropout=0.3),
    "vivit-one-layer": VivitConfig(d_model=8, heads=1, layers=1, dropout=0.3),
    "mlp": MlpConfig(d_model=6, hidden=7, dropout=0.3),
    "transformer": TransformerConfig(d_model=8, heads=2, layers=2, dropout=0.3),
    "tcn": TcnConfig(d_model=8, kernel_size=2, dropout=0.3),
    "lstm": LstmConfig(d_model=5, hidden=6, layers=2, dropout=0.3),
    "gru": GruConfig(d_model=5, hidden=6, layers=2, dropout=0.3),
    "cnn_lstm": CnnLstmConfig(channels=3, hidden=5, dropout=0.3),
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


shapes = st.one_of(
    st.tuples(st.integers(1, 40)),
    st.tuples(st.integers(1, 5), st.integers(1, 40)),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9)),
)


@each_model
@settings(max_examples=20, deadline=None)
@given(
    window=st.integers(1, 9),
    shape=shapes,
    num_classes=st.integers(2, 5),
    precision=st.sampled_from(["fp32", "bf16", "fp16"]),
)
def test_any_shape_runs_forward_and_backward_in_every_precision(
    config: ModelConfig, window: int, shape: tuple[int, ...], num_classes: int, precision: Any
) -> None:
    torch.manual_seed(0)
    model = build_model(config, window=window, shape=shape, num_classes=num_classes)
    with Precision(precision, torch.device("cpu")).autocast():
        logits_BK = model(torch.randn(2, window, *shape))
    assert logits_BK.shape == (2, num_classes)
    torch.autograd.backward(logits_BK.float().sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # as in Passes
@pytest.mark.parametrize(
    ("name", "precision"), list(zip(SMALL, cycle(("fp32", "bf16", "fp16")), strict=False))
)
def test_a_compiled_model_gives_the_same_gradients(name: str, precision: Any) -> None:
    """Traced, but not handed to a C++ compiler, which takes its time."""
    config = SMALL[name]
    torch.manual_seed(0)
    model = build_model(config, window=3, shape=(2, 6), num_classes=3).eval()
    rows_RF = torch.randn(6, 2, 6)
    found = []
    for wrap in (lambda f: f, partial(torch.compile, backend="eager")):
        with Precision(precision, torch.device("cpu")).autocast():
            logits_BK = wrap(model.head)(wrap(model.encode)(rows_RF).view(2, 3, -1)).float()
        gradients = torch.autograd.grad(logits_BK.square().sum(), list(model.parameters()))
        found.append([logits_BK.detach(), *gradients])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain)


@each_model
@pytest.mark.parametrize("shape", [(700,), (4, 128)], ids=str)
def test_wide_rows_run_forward_and_backward(config: ModelConfig, shape: tuple[int, ...]) -> None:
    model = build_model(config, window=5, shape=shape, num_classes=3)
    logits_BK = model(torch.randn(2, 5, *shape))
    torch.autograd.backward(logits_BK.sum())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("window", [1, 2, 7])
def test_the_last_query_alone_gives_the_last_step_of_the_full_layer(window: int) -> None:
    torch.manual_seed(0)
    block = Block(d_model=8, heads=2, dropout=0.5).double().eval()
    x_BTD = torch.randn(3, window, 8, dtype=torch.float64)
    torch.testing.assert_close(block(x_BTD, num_queries=1), block(x_BTD)[:, -1:], rtol=1e-12, atol=1e-12)


@each_model
def test_every_row_of_the_window_and_their_order_matter(config: ModelConfig) -> None:
    model = make_model(config, window=5).eval()
    x_BTF = torch.randn(16, 5, 2, 6, dtype=torch.float64)
    logits_BK = model(x_BTF)
    assert not torch.equal(model(x_BTF.flip(1)), logits_BK)
    for t in range(5):
        changed_BTF = x_BTF.clone()
        changed_BTF[:, t] += 1
        assert not torch.equal(model(changed_BTF), logits_BK)


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
    assert flops is not None
    assert 32 * row < flops < 32 * row * 1.2


def test_flops_of_an_mlp_are_its_matrix_products() -> None:
    flops = flops_per_sample(MlpConfig(d_model=6, hidden=7), window=3, shape=(5,), num_classes=2)
    assert flops == 2 * (3 * 5 * 6 + 18 * 7 + 7 * 2)


def test_flops_of_an_lstm_are_its_gates() -> None:
    flops = flops_per_sample(LstmConfig(d_model=6, hidden=7), window=3, shape=(5,), num_classes=2)
    assert flops == 2 * (3 * (5 * 6 + 4 * 7 * (6 + 7)) + 7 * 2)


@each_model
def test_flops_are_those_of_the_whole_window(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = build_model(config, window=7, shape=(2, 6), num_classes=3).eval()
        x_BTF = torch.empty(1, 7, 2, 6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(x_BTF)
    assert flops_per_sample(config, window=7, shape=(2, 6), num_classes=3) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (TransformerConfig(), 467_076),
        (TcnConfig(), 131_908),
        (LstmConfig(), 132_676),
        (GruConfig(), 107_844),
        (CnnLstmConfig(), 148_964),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_default_models_have_their_known_sizes(config: ModelConfig, parameters: int) -> None:
    model = build_model(config, window=32, shape=(4, 128), num_classes=4)
    assert num_parameters(model) == parameters


@pytest.mark.parametrize("window", [1, 2, 5, 16, 33])
@pytest.mark.parametrize("kernel_size", [2, 3])
def test_a_tcn_gives_the_numbers_of_the_dilated_network(window: int, kernel_size: int) -> None:
    config = TcnConfig(d_model=4, kernel_size=kernel_size, layers=4)
    model = make_model(config, window=window).eval()
    assert isinstance(model, Tcn)
    x_BTF = torch.randn(3, window, 2, 6, dtype=torch.float64)
    x_BDT = model.encode(x_BTF.flatten(0, 1)).view(3, window, -1).transpose(1, 2)
    for layer, block in enumerate(model.blocks):
        y_BDT = x_BDT
        assert isinstance(block, CausalBlock)
        for convolution in (block.first, block.second):
            padded_BDT = F.pad(y_BDT, ((kernel_size - 1) * 2**layer, 0))
            y_BDT = F.relu(F.conv1d(padded_BDT, convolution.weight, convolution.bias, dilation=2**layer))
        x_BDT = F.relu(x_BDT + y_BDT)
    expected_BK = model.classifier(x_BDT[..., -1])
    torch.testing.assert_close(model(x_BTF), expected_BK, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("window", [1, 2, 7, 32, 512])
def test_a_tcn_of_unsaid_depth_sees_the_whole_window(window: int) -> None:
    layers = layers_to_see(window, 3)
    assert 1 + 4 * (2**layers - 1) >= window
    assert layers == 1 or 1 + 4 * (2 ** (layers - 1) - 1) < window


def test_pooling_by_slices_is_max_pooling() -> None:
    x_BCT = torch.randn(2, 3, 7)
    assert torch.equal(_highest_of_3(x_BCT), F.max_pool1d(x_BCT, 3, stride=1, padding=1))


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
