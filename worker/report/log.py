"""The run's log, in the words of the contract (section 7). Golden-tested: people and scripts read it."""

from __future__ import annotations

import math
from typing import TextIO

from app.failpoints import failpoint
from app.jobs.scores import scores
from worker.engine.events import (
    BatchDone,
    Ended,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    Resumed,
    Tested,
    Warned,
)

GB = 2**30


class Log:
    """A sink of events that writes lines to `stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, event: Event) -> None:
        """Write what an event is worth in the log; most are worth nothing."""
        match event:
            case EpochStarted():
                self._say(f"[EPOCH] Epoch {event.epoch}/{event.epochs}")
            case BatchDone():
                self._batch(event)
            case EpochDone():
                self._epoch(event)
            case Resumed():
                self._resumed(event)
            case OomRecovered():
                self._say(f"[OOM] {_smaller(event)}: {event.message}")
            case Tested():
                self._say(f"[TEST] {_scored(event.loss, event.accuracy, event.confusion)}")
            case Warned():
                self._say(f"[WARN] {event.code}: {event.message}")
            case _:
                pass

    def end(self, status: str, event: Ended) -> None:
        """Write the last line of an attempt."""
        self._say(f"[END] {status} ({event.reason})")

    def _resumed(self, event: Resumed) -> None:
        where = "validation" if event.is_epoch_trained else f"batch {event.batch}"
        self._say(f"[RESUME] Epoch {event.epoch}/{event.epochs}, {where}, after step {event.step}")

    def _batch(self, event: BatchDone) -> None:
        self._say(f"   Batch {event.batch:4d} | Loss: {event.loss:.4f} | Acc: {event.accuracy:.2%}")
        self._memory("RAM", event.ram_used, event.ram_total)
        self._memory("VRAM", event.vram_used, event.vram_total)

    def _epoch(self, event: EpochDone) -> None:
        self._say(f"   [VAL] {_scored(event.val_loss, event.val_accuracy, event.confusion)}")
        if event.best is not None:
            before = math.inf if event.best.previous_loss is None else event.best.previous_loss
            self._say(f"   [SAVE] Val loss improved ({before:.4f} --> {event.val_loss:.4f})")
        elif event.patience is not None:
            self._say(f"   [EARLY STOP] {event.stale_epochs} of {event.patience}")
        if event.skipped_steps:
            self._say(f"   [SKIP] {event.skipped_steps} steps skipped in this epoch")

    def _memory(self, name: str, used: int | None, total: int | None) -> None:
        if used is not None and total is not None:
            self._say(f"   [{name}] {used / GB:.1f} GB / {total / GB:.1f} GB")

    def _say(self, line: str) -> None:
        failpoint("log.before_line")
        print(line, file=self._stream, flush=True)


def _smaller(event: OomRecovered) -> str:
    """Say how a run goes on that was out of GPU memory."""
    match event.during:
        case "evaluation":
            return f"Evaluation goes on with batches of {event.batch_size}"
        case "the optimizer step":
            how = f"Optimizer step {event.step} is cut off; the next attempt has micro-batches"
        case _:
            how = f"Step {event.step} again with micro-batches"
    rows = "" if event.rung.is_sharing else ", rows encoded for each"
    return f"{how} of {event.batch_size}{rows}{', recomputing' if event.rung.is_recomputing else ''}"


def _scored(loss: float, accuracy: float, confusion: list[list[int]]) -> str:
    return f"Loss: {loss:.4f} | Acc: {accuracy:.2%} | macro-F1: {scores(confusion)['macro_f1']:.2f}"
