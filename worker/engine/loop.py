"""The method: train an epoch, validate, keep the best, stop when it no longer improves; told as events."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import closing
from functools import partial

from app.errors import InvalidData
from worker.engine.checkpoint import read_weights
from worker.engine.epoch import Epoch, Keep
from worker.engine.evaluate import Evaluation, evaluate
from worker.engine.events import Ended, EpochStarted, Event, PhaseChanged, Tested
from worker.engine.resume import state_of
from worker.engine.run import MAX_NON_FINITE_STEPS, Run


def fit(run: Run) -> Generator[Event, None, None]:
    """Train to the end, yielding facts: one event at least per micro-batch and evaluation batch, Ended last.

    A restored run goes on where it was. To stop, leave the loop: the best checkpoint stands, nothing
    half-done is left; to go on later, `run.request_checkpoint()` first, and wait for it. Raises
    GpuOutOfMemory, InvalidData when validation has no class weight, and whatever the streams raise.
    """
    epochs = run.request.training.epochs
    keep = partial(run.keeper.visit, run, copy=state_of)
    try:
        while run.num_epochs < epochs and not run.stopping.is_due:
            epoch = Epoch(run)
            if not epoch.is_trained:
                yield PhaseChanged("training")
                if not epoch.is_resumed:
                    yield EpochStarted(epoch.number, epochs, epoch.num_batches)
                yield from epoch.train(keep)
            if run.is_diverging:
                yield _diverged(
                    run, f"The gradients of {MAX_NON_FINITE_STEPS} steps in a row were not finite."
                )
                return
            yield PhaseChanged("validating", epoch.batch)
            val = yield from _validate(run, epoch, keep)
            yield from epoch.close(val)
            if not math.isfinite(val.loss):
                yield _diverged(run, f"The validation loss of epoch {epoch.number} is {val.loss}.")
                return
        if run.splits.test is not None:
            yield from _test(run, keep)
        yield _ended(run)
    finally:
        run.keeper.close()
        run.free()


def _validate(run: Run, epoch: Epoch, keep: Keep) -> Generator[Event, None, Evaluation]:
    val = yield from _keeping(evaluate(run, run.splits.val, epoch.number), epoch, keep)
    if run.loss.weight_of([sum(row) for row in val.confusion]) == 0:
        raise InvalidData(
            "The validation split has total class weight 0: its loss is undefined.",
            "Give a weight above 0 to a class that is in the validation split.",
        )
    return val


def _test(run: Run, keep: Keep) -> Generator[Event, None, None]:
    """Evaluate the test split once, with the best weights."""
    assert run.best is not None
    assert run.splits.test is not None
    run.model.load_state_dict(read_weights(run.directory / run.best.name))
    if run.average is not None:
        run.average.restart()
    test = yield from _keeping(evaluate(run, run.splits.test, run.num_epochs), Epoch(run), keep)
    yield Tested(loss=test.loss, accuracy=test.accuracy, confusion=test.confusion)


def _keeping(
    evaluation: Generator[Event, None, Evaluation], epoch: Epoch, keep: Keep
) -> Generator[Event, None, Evaluation]:
    """Evaluate, with resume checkpoints on the way: the state stands still meanwhile."""
    with closing(evaluation):
        while True:
            yield from keep(epoch)
            try:
                event = next(evaluation)
            except StopIteration as end:
                evaluated: Evaluation = end.value
                return evaluated
            yield event


def _ended(run: Run) -> Ended:
    stopping = run.stopping
    if stopping.is_due:
        return Ended(
            "early_stopped",
            f"No better validation loss than {stopping.best_loss:.6g} for {stopping.stale_epochs} epochs.",
        )
    epochs = "1 epoch" if run.num_epochs == 1 else f"{run.num_epochs} epochs"
    return Ended("completed", f"Trained {epochs}; the best validation loss is {stopping.best_loss:.6g}.")


def _diverged(run: Run, what: str) -> Ended:
    kept = "The best checkpoint is kept." if run.best else "There was no checkpoint yet."
    return Ended(
        "diverged",
        f"{what} {kept}",
        "Lower optimizer.lr, set training.clip_grad_norm, or check the scale of the features.",
        evidence={"non_finite_streak": run.non_finite_streak, "steps": run.num_steps},
    )
