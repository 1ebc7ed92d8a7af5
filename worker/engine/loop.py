"""The method: train an epoch, validate, keep the best, stop when it no longer improves; told as events."""

from __future__ import annotations

import math
from collections.abc import Generator

from app.errors import InvalidData
from worker.engine.checkpoint import read_weights
from worker.engine.epoch import Epoch
from worker.engine.evaluate import Evaluation, evaluate
from worker.engine.events import Ended, EpochStarted, Event, PhaseChanged, Tested
from worker.engine.run import MAX_NON_FINITE_STEPS, Run


def fit(run: Run) -> Generator[Event, None, None]:
    """Train to the end, yielding facts: one event at least per micro-batch and evaluation batch, Ended last.

    To stop, leave the loop: the best checkpoint stands, nothing half-done is left. Raises GpuOutOfMemory,
    InvalidData when validation has no class weight, and whatever the streams raise.
    """
    epochs = run.request.training.epochs
    try:
        for number in range(1, epochs + 1):
            epoch = Epoch(run, number)
            yield PhaseChanged("training")
            yield EpochStarted(number, epochs, epoch.num_batches)
            yield from epoch.train()
            if run.is_diverging:
                yield _diverged(
                    run, f"The gradients of {MAX_NON_FINITE_STEPS} steps in a row were not finite."
                )
                return
            yield PhaseChanged("validating")
            val = yield from _validate(run, number)
            yield from epoch.close(val)
            if not math.isfinite(val.loss):
                yield _diverged(run, f"The validation loss of epoch {number} is {val.loss}.")
                return
            if run.stopping.is_due:
                break
        if run.splits.test is not None:
            yield from _test(run, number)
        yield _ended(run, number)
    finally:
        run.free()


def _validate(run: Run, number: int) -> Generator[Event, None, Evaluation]:
    val = yield from evaluate(run, run.splits.val, number)
    if run.loss.weight_of([sum(row) for row in val.confusion]) == 0:
        raise InvalidData(
            "The validation split has total class weight 0: its loss is undefined.",
            "Give a weight above 0 to a class that is in the validation split.",
        )
    return val


def _test(run: Run, number: int) -> Generator[Event, None, None]:
    """Evaluate the test split once, with the best weights."""
    assert run.best is not None
    assert run.splits.test is not None
    run.model.load_state_dict(read_weights(run.directory / run.best.name))
    test = yield from evaluate(run, run.splits.test, number)
    yield Tested(loss=test.loss, accuracy=test.accuracy, confusion=test.confusion)


def _ended(run: Run, number: int) -> Ended:
    stopping = run.stopping
    if stopping.is_due:
        return Ended(
            "early_stopped",
            f"No better validation loss than {stopping.best_loss:.6g} for {stopping.stale_epochs} epochs.",
        )
    return Ended(
        "completed", f"Trained {number} epochs; the best validation loss is {stopping.best_loss:.6g}."
    )


def _diverged(run: Run, what: str) -> Ended:
    kept = "The best checkpoint is kept." if run.best else "There was no checkpoint yet."
    return Ended(
        "diverged",
        f"{what} {kept}",
        "Lower optimizer.lr, set training.clip_grad_norm, or check the scale of the features.",
        evidence={"non_finite_streak": run.non_finite_streak, "steps": run.num_steps},
    )
