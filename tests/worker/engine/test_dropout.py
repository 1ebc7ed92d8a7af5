"""Deterministic dropout: a mask is a function of (seed, step, layer, sample), not of how a step is cut."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.worker.engine.factory import MLP, VIVIT, make_request, make_run, make_samples, train, weights_of
from tests.worker.engine.test_oom import run_out
from worker.engine.events import BatchDone, OomRecovered
from worker.engine.run import Run
from worker.models.dropout import Dropout, Masks, draw_from

torch.set_num_threads(1)

DROPPING = [{**MLP, "dropout": 0.4}, {**VIVIT, "dropout": 0.4}]
CUTS: dict[str, dict[str, Any]] = {
    "15x1": {"batch_size": 15, "accumulation_steps": 1},
    "5x3": {"batch_size": 5, "accumulation_steps": 3},
    "3x5": {"batch_size": 3, "accumulation_steps": 5},
    "1x15": {"batch_size": 1, "accumulation_steps": 15},
    "4+4+4+3": {"batch_size": 4, "effective_batch": 15},
    "auto": {"batch_size": "auto"},
}
each_model = pytest.mark.parametrize("model", DROPPING, ids=["mlp", "vivit"])


@pytest.fixture(autouse=True)
def _deterministic_off() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


def deterministic_run(model: dict[str, Any], cut: dict[str, Any], **training: Any) -> Run:
    request = make_request(model=model, training={"deterministic": True, **cut, **training})
    return make_run(request, train=make_samples(64), dtype=torch.float64)


@each_model
def test_any_cut_of_the_step_trains_the_same_weights_with_dropout_on(model: dict[str, Any]) -> None:
    weights = []
    for cut in CUTS.values():
        run = deterministic_run(model, cut)
        train(run)
        weights.append(weights_of(run))
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=1e-12, atol=1e-12)
    other_seed = deterministic_run(model, CUTS["3x5"], seed=1)
    train(other_seed)
    assert not torch.allclose(weights_of(other_seed), weights[0])


@each_model
def test_out_of_memory_drops_the_same_elements_again(model: dict[str, Any]) -> None:
    undisturbed, disturbed = (deterministic_run(model, CUTS["5x3"]) for _ in range(2))
    run_out(disturbed, "head", lambda call, _: call in (4, 9))
    expected = [e for e in train(undisturbed) if isinstance(e, BatchDone)]
    events = train(disturbed)
    assert [e.batch_size for e in events if isinstance(e, OomRecovered)] == [2, 1]
    torch.testing.assert_close(weights_of(disturbed), weights_of(undisturbed), rtol=1e-12, atol=1e-12)
    for row, wanted in zip([e for e in events if isinstance(e, BatchDone)], expected, strict=True):
        assert row.loss == pytest.approx(wanted.loss, rel=1e-12)


def test_deterministic_dropout_draws_no_random_numbers() -> None:
    run = deterministic_run(DROPPING[1], CUTS["3x5"])
    before = torch.get_rng_state()
    train(run)
    assert torch.equal(torch.get_rng_state(), before)


def test_each_step_layer_and_sample_has_a_mask_of_its_own() -> None:
    masks = Masks(seed=0)
    drawn = []
    for step in range(3):
        masks.begin(step, 0, 8)
        for _ in range(2):
            drawn += list(masks.keep(torch.Size([8, 64]), 0.5, torch.device("cpu")))
    assert len({tuple(mask.tolist()) for mask in drawn}) == 3 * 2 * 8


@pytest.mark.parametrize("p", [0.01, 0.1, 0.5, 0.9])
def test_the_share_dropped_and_the_scale_are_those_of_dropout(p: float) -> None:
    dropout = Dropout(p)
    masks = Masks(seed=3)
    draw_from(dropout, masks)
    masks.begin(7, 0, 100)
    dropped = dropout(torch.ones(100, 10_000))
    share = float((dropped == 0).double().mean())
    # Five standard deviations.
    assert abs(share - p) < 5 * (p * (1 - p) / 1e6) ** 0.5
    assert set(dropped.flatten().tolist()) == {0.0, float(torch.tensor(1.0 / (1.0 - p)))}


def test_a_slice_is_a_slice_of_the_whole_even_with_rows_before_samples() -> None:
    masks = Masks(seed=5)
    masks.begin(1, 0, 6)
    whole = masks.keep(torch.Size([6, 4, 3]), 0.5, torch.device("cpu"))
    masks.begin(1, 2, 3)
    assert torch.equal(masks.keep(torch.Size([3, 4, 3]), 0.5, torch.device("cpu")), whole[2:5])
    masks.begin(1, 2, 3)
    flat = masks.keep(torch.Size([12, 3]), 0.5, torch.device("cpu"))
    assert torch.equal(flat, whole[2:5].reshape(12, 3))


def test_without_masks_it_is_torchs_own_dropout() -> None:
    x = torch.randn(5, 7)
    torch.manual_seed(0)
    found = Dropout(0.3)(x)
    torch.manual_seed(0)
    assert torch.equal(found, torch.nn.Dropout(0.3)(x))
    assert Dropout(0.3).eval()(x) is x
    assert Dropout(0.0)(x) is x
