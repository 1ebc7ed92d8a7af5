"""What nulls and autos become."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.worker.engine.factory import SHAPE, make_request, make_samples
from worker.engine.errors import ConfigInvalid
from worker.engine.events import Rung
from worker.engine.resolve import EVAL_BATCH, resolve, resolve_class_weights
from worker.engine.run import build_run
from worker.engine.samples import Splits


def test_defaults_on_a_cpu() -> None:
    resolved = resolve(make_request(training={"threads": None}), num_classes=4)
    assert (resolved.device, resolved.precision) == ("cpu", "fp32")
    assert (resolved.batch_size, resolved.nominal_batch, resolved.effective_batch) == (3, 3, 15)
    assert resolved.eval_batch_size == EVAL_BATCH
    assert resolved.class_weights == [1.0, 10.0, 10.0, 20.0]
    assert resolved.threads >= 1


def test_auto_batch_starts_at_the_effective_batch() -> None:
    resolved = resolve(make_request(training={"batch_size": "auto", "effective_batch": 40}), num_classes=2)
    assert (resolved.batch_size, resolved.nominal_batch, resolved.effective_batch) == (40, 40, 40)


def test_auto_weights_are_for_four_classes_only() -> None:
    assert resolve_class_weights("auto", 3) is None
    assert resolve_class_weights(None, 4) is None
    assert resolve_class_weights([1.0, 2.0], 2) == [1.0, 2.0]


def test_a_wrong_number_of_weights_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="2 weights, the data have 3 classes"):
        resolve_class_weights([1.0, 2.0], 3)


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="usable CUDA devices"):
        resolve(make_request(device="cuda:99"), num_classes=4)


def test_a_run_can_start_down_the_ladder_and_never_above_what_was_asked() -> None:
    request = make_request(training={"batch_size": 8, "accumulation_steps": 2, "eval_batch_size": 16})
    low = resolve(request, num_classes=4, rung=Rung(2, 4, False, True))
    assert (low.batch_size, low.eval_batch_size, low.share_rows, low.activation_checkpointing) == (
        2,
        4,
        False,
        True,
    )
    assert (low.nominal_batch, low.effective_batch) == (8, 16)
    high = resolve(request, num_classes=4, rung=Rung(32, 64, True, False))
    assert high == resolve(request, num_classes=4)
    run = build_run(
        request,
        low,
        shape=SHAPE,
        num_classes=4,
        splits=Splits(make_samples(20), make_samples(9), None),
        directory=Path(),
    )
    assert run.rung == Rung(2, 4, False, True)
