"""The story `fit` tells: rows, epochs, the best, and how it ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    InMemory,
    make_request,
    make_run,
    make_samples,
    train,
    weights_of,
)
from worker.engine.events import (
    BatchDone,
    Ended,
    EpochDone,
    EpochStarted,
    PhaseChanged,
    Tested,
    Tick,
    decode,
    encode,
)
from worker.engine.loop import fit
from worker.engine.run import MAX_NON_FINITE_STEPS

torch.set_num_threads(1)


def rows_of(events: list[Any]) -> list[BatchDone]:
    return [e for e in events if isinstance(e, BatchDone)]


def epochs_of(events: list[Any]) -> list[EpochDone]:
    return [e for e in events if isinstance(e, EpochDone)]


def test_an_epoch_is_told_in_order() -> None:
    # 64 samples: nominal batches 0 .. 21, the last of one sample; steps of 15, the last of 4.
    events = train(make_run(make_request(training={"epochs": 1}), test=make_samples(9, seed=2)))
    assert [e.phase if isinstance(e, PhaseChanged) else type(e) for e in events] == [
        "training",
        EpochStarted,
        *[BatchDone] * 3,
        "validating",
        "saving",
        EpochDone,
        Tested,
        Ended,
    ]
    assert events[1] == EpochStarted(epoch=1, epochs=1, batches=22)
    assert events[-1].reason == "completed"


def test_every_micro_batch_and_evaluation_batch_gives_a_chance_to_stop() -> None:
    request = make_request(training={"epochs": 1, "eval_batch_size": 4})
    ticks = [e for e in fit(make_run(request)) if isinstance(e, Tick)]
    assert len(ticks) == (5 * 4 + 2) + 6  # four steps of 15, one of 4; 21 validation samples


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        # (batch, step, samples in the row)
        ({"log_every": 10}, [(0, 1, 3), (10, 3, 30), (20, 5, 30)]),
        ({"log_every": 7}, [(0, 1, 3), (7, 2, 21), (14, 3, 21), (21, 5, 19)]),
        ({"log_every": 100}, [(0, 1, 3)]),
        ({"batch_size": "auto", "log_every": 2}, [(0, 1, 15), (2, 3, 30), (4, 5, 19)]),
        # 15 as 4+4+4+3: nominal batch 3 ends with the first sample of step 2.
        ({"batch_size": 4, "effective_batch": 15, "log_every": 3}, [(0, 1, 4), (3, 2, 12), (6, 2, 12)]),
    ],
    ids=["10", "7", "100", "auto", "ragged"],
)
def test_a_row_covers_the_samples_since_the_row_before(
    training: dict[str, Any], expected: list[tuple[int, int, int]]
) -> None:
    samples = make_samples(64)
    request = make_request(training={"epochs": 1, **training})
    # A learning rate this small leaves the weights alone: every loss is that of the first weights.
    request = request.model_copy(update={"optimizer": request.optimizer.model_copy(update={"lr": 1e-300})})
    run = make_run(request, train=samples, dtype=torch.float64)
    logits_NK = run.model(samples.windows().double()).detach()
    losses_N = run.loss.per_sample(logits_NK, samples.labels_N)
    hits_N = logits_NK.argmax(1) == samples.labels_N
    rows = rows_of(train(run))
    first = 0
    for row, (batch, step, count) in zip(rows, expected, strict=False):
        part = slice(first, first + count)
        assert (row.batch, row.step) == (batch, step)
        weight = run.loss.total_weight(samples.labels_N[part])
        assert row.loss == pytest.approx(float(losses_N[part].sum()) / weight, rel=1e-10)
        assert row.accuracy == pytest.approx(float(hits_N[part].double().mean()))
        first += count
    assert len(rows) >= len(expected)


def test_rate_and_norm_of_a_row_are_those_of_the_last_finished_step() -> None:
    request = make_request(training={"epochs": 1, "log_every": 1}, schedule={"warmup_steps": 10})
    rows = rows_of(train(make_run(request)))
    # Batch 4 is the last of step 1, batch 9 of step 2.
    rates = [row.lr for row in rows]
    assert rates[:4] == [None] * 4
    assert rates[4:9] == pytest.approx([1e-5] * 5)
    assert rates[9:14] == pytest.approx([2e-5] * 5)
    norms = [row.grad_norm for row in rows]
    assert norms[:4] == [None] * 4
    assert len(set(norms[4:9])) == 1
    assert all(n is not None and n > 0 for n in norms[4:])


def test_clipping_bounds_the_step_and_reports_the_norm_before_it() -> None:
    free, clipped = (
        make_run(make_request(training={"epochs": 1, "log_every": 1, "clip_grad_norm": clip}))
        for clip in (None, 1e-3)
    )
    # Adam is scale-free at its first step, so compare what it remembers.
    expected, found = rows_of(train(free)), rows_of(train(clipped))
    assert found[4].grad_norm == expected[4].grad_norm
    assert found[4].grad_norm is not None
    assert found[4].grad_norm > 1e-3


def test_epoch_totals_count_every_sample_once() -> None:
    [epoch] = epochs_of(train(make_run(make_request(training={"epochs": 1, "log_every": 4}))))
    assert sum(map(sum, epoch.train_confusion)) == 64
    assert sum(map(sum, epoch.confusion)) == 21
    hits = sum(row[k] for k, row in enumerate(epoch.train_confusion))
    assert epoch.train_accuracy == hits / 64


def test_log_every_changes_no_number_but_the_rows() -> None:
    runs = [make_run(make_request(training={"log_every": every})) for every in (1, 1000)]
    often, seldom = (epochs_of(train(run)) for run in runs)
    for a, b in zip(often, seldom, strict=True):
        assert a.train_loss == pytest.approx(b.train_loss, rel=1e-12)
        assert (a.val_loss, a.confusion, a.train_confusion) == (b.val_loss, b.confusion, b.train_confusion)
    assert torch.equal(weights_of(runs[0]), weights_of(runs[1]))


def test_metric_rows_carry_memory_and_epochs_its_peak() -> None:
    used = iter([100, 300, 200, 150])
    run = make_run(
        make_request(training={"epochs": 1}), memory=lambda: {"ram_used": next(used), "ram_total": 1000}
    )
    events = train(run)
    assert [row.ram_used for row in rows_of(events)] == [100, 300, 200]
    assert rows_of(events)[0].ram_total == 1000
    assert epochs_of(events)[0].ram_peak == 300
    assert epochs_of(events)[0].vram_peak is None


def test_the_same_seed_gives_the_same_bits() -> None:
    request = make_request(model={**VIVIT, "dropout": 0.3})
    first = make_run(request)
    events = train(first)
    second = make_run(request)
    assert [e.val_loss for e in epochs_of(train(second))] == [e.val_loss for e in epochs_of(events)]
    assert torch.equal(weights_of(first), weights_of(second))
    other = make_run(make_request(model={**VIVIT, "dropout": 0.3}, training={"seed": 1}))
    assert not torch.equal(weights_of(other), weights_of(make_run(request)))


@pytest.mark.parametrize("stride", [1, 2], ids=["dense", "gathered"])
def test_deterministic_algorithms_suffice(stride: int) -> None:
    request = make_request(model=VIVIT, training={"deterministic": True, "epochs": 1, "clip_grad_norm": 1.0})
    try:
        first, second = (make_run(request, train=make_samples(64, stride=stride)) for _ in range(2))
        assert torch.are_deterministic_algorithms_enabled()
        train(first)
        train(second)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(weights_of(first), weights_of(second))


def test_training_lowers_the_loss() -> None:
    request = make_request(
        model=VIVIT, training={"epochs": 12}, optimizer={"lr": 1e-2}, early_stopping={"patience": None}
    )
    epochs = epochs_of(train(make_run(request, train=make_samples(300))))
    assert epochs[-1].train_loss < 0.7 * epochs[0].train_loss


def test_patience_ends_the_run_and_the_best_epoch_is_tested(tmp_path: Path) -> None:
    # A huge learning rate: validation gets worse after the start.
    request = make_request(training={"epochs": 40}, optimizer={"lr": 0.5}, early_stopping={"patience": 2})
    test = make_samples(30, seed=3)
    run = make_run(request, test=test, directory=tmp_path)
    events = train(run)
    epochs = epochs_of(events)
    assert events[-1].reason == "early_stopped"
    assert len(epochs) < 40
    assert [e.stale_epochs for e in epochs[-3:]] == [0, 1, 2]
    best = epochs[-3]
    assert best.best is not None
    assert best.val_loss == min(e.val_loss for e in epochs)
    [tested] = [e for e in events if isinstance(e, Tested)]
    run.model.load_state_dict(torch.load(tmp_path / best.best.name, weights_only=True))
    logits_NK = run.model.eval()(test.windows()).detach()
    sums = float(run.loss.per_sample(logits_NK, test.labels_N).sum())
    assert tested.loss == pytest.approx(sums / run.loss.total_weight(test.labels_N), rel=1e-6)


def test_a_step_without_class_weight_is_skipped_and_counted() -> None:
    samples = make_samples(45)
    labels_N = samples.labels_N.clone()
    labels_N[:15] = 0
    labels_N[15:] = 1
    run = make_run(
        make_request(loss={"class_weights": [0.0, 1.0, 1.0, 1.0]}, training={"epochs": 1, "log_every": 1}),
        train=InMemory(samples.rows_RF, labels_N),
        val=InMemory(samples.rows_RF, labels_N),
    )
    events = train(run)
    [epoch] = epochs_of(events)
    assert epoch.skipped_steps == 1
    assert run.num_steps == 2
    rows = rows_of(events)
    assert [row.batch for row in rows] == list(range(15))
    assert [math.isnan(row.loss) for row in rows] == [True] * 5 + [False] * 10, "no weight, no weighted mean"
    assert rows[5].step == 1
    assert sum(map(sum, epoch.train_confusion)) == 30


def test_a_non_finite_step_changes_nothing_and_is_counted() -> None:
    samples = make_samples(45)
    rows_RF = samples.rows_RF.clone()
    rows_RF[20] = math.nan
    run = make_run(make_request(training={"epochs": 1}), train=InMemory(rows_RF, samples.labels_N))
    events = train(run)
    [epoch] = epochs_of(events)
    assert epoch.skipped_steps == 1
    assert run.num_steps == 2
    assert weights_of(run).isfinite().all()
    assert math.isnan(epoch.train_loss)
    assert events[-1].reason == "completed"


def test_steps_that_stay_non_finite_end_as_diverged_with_the_best_kept(tmp_path: Path) -> None:
    run = make_run(make_request(training={"epochs": 50}), directory=tmp_path)
    events: list[Any] = []
    for event in fit(run):
        events.append(event)
        if isinstance(event, EpochDone) and event.epoch == 2:
            with torch.no_grad():
                next(run.model.parameters()).fill_(math.nan)
    end = events[-1]
    assert isinstance(end, Ended)
    assert end.reason == "diverged"
    assert "best checkpoint is kept" in end.message
    assert len(epochs_of(events)) == 3
    # The third epoch validates nan, before the streak is long enough.
    assert math.isnan(epochs_of(events)[-1].val_loss)
    assert epochs_of(events)[-1].best is None
    assert run.best is not None
    assert (tmp_path / run.best.name).exists()


def test_a_long_streak_of_non_finite_steps_ends_within_the_epoch() -> None:
    samples = make_samples(15 * (MAX_NON_FINITE_STEPS + 10))
    bad = InMemory(torch.full_like(samples.rows_RF, math.nan), samples.labels_N)
    run = make_run(train=bad)
    end = train(run)[-1]
    assert isinstance(end, Ended)
    assert end.reason == "diverged"
    # A step is judged when the next one is taken: the device is never waited for.
    assert MAX_NON_FINITE_STEPS <= end.evidence["non_finite_streak"] <= MAX_NON_FINITE_STEPS + 1


def test_leaving_the_loop_closes_the_stream_and_frees() -> None:
    closed = []

    class Watched(InMemory):
        def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Any:
            try:
                yield from super().batches(size, skip=skip, epoch=epoch)
            finally:
                closed.append(size)

    samples = make_samples(64)
    run = make_run(train=Watched(samples.rows_RF, samples.labels_N))
    events = fit(run)
    for event in events:
        if isinstance(event, BatchDone):
            break
    events.close()
    assert closed == [15]
    assert all(p.grad is None for p in run.model.parameters())
    assert not run.optimizer.state


def test_every_event_crosses_the_pipe() -> None:
    for event in train(make_run(make_request(model=MLP, training={"epochs": 1}))):
        assert decode(encode(event)) == event
