"""The run's log, in the words of the contract (section 7). Golden-tested: people and scripts read it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from os import SEEK_END
from pathlib import Path
from typing import Any, TextIO

from app.failpoints import failpoint
from app.jobs.config import changes, stored
from app.jobs.scores import scores
from app.text import escaped
from worker.engine.events import (
    BatchDone,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    Prepared,
    Resumed,
    Tested,
    Warned,
)

GB = 2**30
# What the first lines say elsewhere.
SHOWN = {"name", "data.path", "model.name"}


def now() -> datetime:
    """The time of a line."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Heading:
    """What is known of an attempt before it has read anything.

    versions: "saimp 1.2.0, torch 2.13.0"; device: "cpu", or "cuda:0" and the GPU's name.
    """

    job_id: str
    attempt: int
    config: Mapping[str, Any]
    versions: str
    device: str


class Log:
    """A sink of events that writes lines to `stream`; with a heading, under it."""

    def __init__(
        self, stream: TextIO, heading: Heading | None = None, clock: Callable[[], datetime] = now
    ) -> None:
        self._stream = stream
        self._heading = heading
        self._clock = clock
        self._held: list[Warned] | None = None  # what waits until the heading is whole

    def begin(self) -> None:
        """Write the first line of the heading, for data may take long to read."""
        if self._heading is not None:
            self._held = []
            self._job(self._heading)

    def write(self, event: Event) -> None:
        """Write what an event is worth in the log; most are worth nothing."""
        match event:
            case Prepared() if self._heading is not None:
                self._data(self._heading, event)
                self._model(self._heading, event)
                self.end()
            case Warned() if self._held is not None:
                self._held.append(event)
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

    def end(self) -> None:
        """Say what waited for the heading, which may never come."""
        held, self._held = self._held or (), None
        for event in held:
            self.write(event)

    def error(self, message: str) -> None:
        """Say why the attempt ends."""
        self.end()
        self._say(f"[ERROR] {message}")

    def _job(self, heading: Heading) -> None:
        name = heading.config["name"]
        quoted = "" if name is None else f" {_json(name)}"
        self._say(
            f"[JOB] {heading.job_id}{quoted} attempt {heading.attempt} | {self._time()}"
            f" | {heading.versions} | {heading.device}"
        )

    def _data(self, heading: Heading, prepared: Prepared) -> None:
        splits = [
            f"{name} {part['windows']} windows {part['start'][:10]}..{part['end'][:10]}"
            for name, part in prepared.plan["splits"].items()
            if part is not None
        ]
        fingerprint = f"fingerprint {prepared.resolved['fingerprint'][:8]}"
        self._say(f"[DATA] {' | '.join((heading.config['data']['path'], *splits, fingerprint))}")

    def _model(self, heading: Heading, prepared: Prepared) -> None:
        request = stored(heading.config)
        parts = [request.model.name, f"{prepared.plan['model']['parameters']:,} parameters"]
        changed = [f"{field}={_json(value)}" for field, value in changes(request) if field not in SHOWN]
        self._say(f"[MODEL] {' | '.join((*parts, *([' '.join(changed)] if changed else [])))}")

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
        self._say(
            f"[TIME] Epoch {event.epoch}: {event.duration_s:.1f} s, {event.samples_per_s:.0f} samples/s,"
            f" {self._time()}"
        )

    def _memory(self, name: str, used: int | None, total: int | None) -> None:
        if used is not None and total is not None:
            self._say(f"   [{name}] {used / GB:.1f} GB / {total / GB:.1f} GB")

    def _time(self) -> str:
        return f"{self._clock():%Y-%m-%d %H:%M:%S} UTC"

    def _say(self, line: str) -> None:
        failpoint("log.before_line")
        print(escaped(line), file=self._stream, flush=True)


class LastWords:
    """The end of an attempt in its log, written by whoever knows what became of the job."""

    def __init__(self, log: Path) -> None:
        self._log = log
        self._start: int | None = None

    def say(self, status: str, code: str, error: str | None = None) -> None:
        """Write them, in place of those said before. A log that is gone stays away."""
        said = f"[ERROR] {escaped(error)}\n" if error else ""
        said += f"[END] {status} ({code})\n"
        with suppress(OSError), self._log.open("r+b") as log:
            if self._start is None:
                self._start = log.seek(0, SEEK_END)
            log.truncate(self._start)
            log.seek(max(0, self._start - 1))
            if log.read(1) not in (b"", b"\n"):  # cut off in the middle of a line
                said = f"\n{said}"
            log.seek(self._start)
            log.write(said.encode())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


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
