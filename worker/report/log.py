"""The run's log, in the words of the contract (section 7). Golden-tested: people and scripts read it."""

from __future__ import annotations

import math
from contextlib import suppress
from os import SEEK_END
from pathlib import Path
from typing import TextIO

from app.failpoints import failpoint
from app.jobs.scores import scores
from worker.engine.events import (
    BatchDone,
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


class LastWords:
    """The end of an attempt in its log, written by whoever knows what became of the job."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start: int | None = None

    def say(self, status: str, code: str, error: str | None = None) -> None:
        """Write them, in place of those said before. A log that is gone stays away."""
        said = f"[ERROR] {error}\n" if error else ""
        said += f"[END] {status} ({code})\n"
        with suppress(OSError), self._log.open("r+b") as log:
            if self._start is None:
                self._start = log.seek(0, SEEK_END)
            log.truncate(self._start)
            log.seek(max(0, self._start - 1))
            if log.read(1) not in (b"", b"\n"):  # cut off in the middle of a line
                said = f"\n{said}"
            log.seek(self._start)
            log.write(said.encode(errors="backslashreplace"))


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
