"""One epoch: its steps, its metric rows, and the one event that closes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from typing import Any, Literal

import torch

from worker.engine.checkpoint import save_best
from worker.engine.evaluate import Evaluation
from worker.engine.events import BatchDone, BestFile, EpochDone, Event, PhaseChanged
from worker.engine.run import Memory, Run
from worker.engine.step import train_step
from worker.engine.tally import Counted, Tally

# Visits the resume checkpoints at a boundary.
Keep = Callable[["Epoch"], Generator[Event, None, None]]

PEAKS: tuple[Literal["ram_used", "vram_torch_peak"], ...] = ("ram_used", "vram_torch_peak")


class Epoch:
    """Train on every sample once, in order, and account for it."""

    def __init__(self, run: Run) -> None:
        self.number = run.num_epochs + 1
        self.num_samples = len(run.splits.train)
        self.trained = 0  # samples
        self.is_trained = False
        self.is_resumed = run.epoch_state is not None
        self._run = run
        self._tally = Tally(run.num_classes, run.device)
        self._train_s = 0.0
        self._peaks: dict[str, int] = {}
        self._started = time.perf_counter()
        if run.epoch_state is not None:
            self._restore(run.epoch_state)
        self._timed_at, self._timed = time.perf_counter(), self.trained  # samples whose speed was reported

    @property
    def num_batches(self) -> int:
        """Count the nominal micro-batches."""
        return -(-self.num_samples // self._run.resolved.nominal_batch)

    @property
    def batch(self) -> int:
        """The nominal micro-batch of the next sample."""
        if self.is_trained:
            return self.num_batches
        return self.trained // self._run.resolved.nominal_batch

    def train(self, keep: Keep) -> Generator[Event, None, None]:
        """Take the epoch's steps, or what is left of them; stop early when the run diverges."""
        run = self._run
        if not self.is_resumed:
            run.skipped_steps = 0
        steps = run.splits.train.batches(run.resolved.effective_batch, skip=self.trained, epoch=self.number)
        with closing(steps):
            yield from keep(self)
            for samples in steps:
                counted = yield from train_step(run, samples, self.number)
                yield from self._report(counted, len(samples))
                if run.is_diverging:
                    break
                if self.trained < self.num_samples:
                    yield from keep(self)
        run.settle()
        self._tally.read()
        self._train_s = time.perf_counter() - self._started
        self.is_trained = True

    def state(self) -> dict[str, Any]:
        """Copy where the epoch stands to the CPU, as plain values and tensors."""
        return {
            "trained": self.trained,
            "is_trained": self.is_trained,
            "elapsed_s": time.perf_counter() - self._started,
            "train_s": self._train_s,
            "peaks": dict(self._peaks),
            "tally": self._tally.state(),
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self.trained = state["trained"]
        self.is_trained = state["is_trained"]
        self._started -= state["elapsed_s"]
        self._train_s = state["train_s"]
        self._peaks = dict(state["peaks"])
        self._tally.restore(state["tally"])

    def close(self, val: Evaluation) -> Generator[Event, None, None]:
        """Take in the validation and, when it is the best so far, save the weights: one event."""
        run = self._run
        previous_loss = run.stopping.best_loss if run.best else None
        if run.stopping.update(val.loss):
            yield PhaseChanged("saving")
            with run.averaged():
                run.best = self._save(val, previous_loss)
            best = run.best
        else:
            best = None
        lr = run.schedule.at(max(1, run.num_steps))
        run.schedule.validated(val.loss)
        train = self._tally.total
        self._observe_memory()
        run.num_epochs += 1
        run.epoch_state = None
        yield EpochDone(
            epoch=self.number,
            train_loss=run.loss.mean(train.loss_sum, train.support),
            train_accuracy=train.accuracy,
            val_loss=val.loss,
            val_accuracy=val.accuracy,
            confusion=val.confusion,
            train_confusion=train.confusion,
            ece=val.ece,
            lr=lr,
            duration_s=time.perf_counter() - self._started,
            samples_per_s=self.trained / self._train_s,
            skipped_steps=run.skipped_steps,
            ram_peak=self._peaks.get("ram_used"),
            vram_peak=self._peaks.get("vram_torch_peak"),
            stale_epochs=run.stopping.stale_epochs,
            patience=run.stopping.patience,
            best=best,
        )

    def _report(self, counted: Counted | None, num_samples: int) -> Generator[BatchDone, None, None]:
        """Yield the metric rows that fall due in a step, each over the samples since the row before it."""
        run = self._run
        first, last = self.trained, self.trained + num_samples
        reported, speed = 0, None
        for batch, end in self._rows_due(first, last):
            step = run.num_steps + 1
            if end == last:
                run.settle()  # the step's last sample: its outcome belongs to the row
            if counted is not None:
                self._tally.add(counted.narrow(reported, end - first))
                reported = end - first
            sums = self._tally.read()
            speed = speed or self._speed(last)
            applied = run.applied
            yield BatchDone(
                epoch=self.number,
                batch=batch,
                step=step,
                loss=run.loss.mean(sums.loss_sum, sums.support),
                accuracy=sums.accuracy,
                lr=applied.lr if applied else None,
                grad_norm=applied.grad_norm if applied else None,
                time=time.time(),
                samples_per_s=speed,
                **self._observe_memory(),
            )
        if counted is not None:
            self._tally.add(counted.narrow(reported, num_samples) if reported else counted)
        self.trained = last

    def _speed(self, trained: int) -> float:
        """Samples trained per second since the last call; a row is written when its whole step is done."""
        now = time.perf_counter()
        speed = (trained - self._timed) / (now - self._timed_at)
        self._timed, self._timed_at = trained, now
        return speed

    def _rows_due(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """Find the batches due for a row whose last sample is in first .. last - 1: number and end."""
        nominal = self._run.resolved.nominal_batch
        every = self._run.request.training.log_every
        batch = -(-(first // nominal) // every) * every
        while batch * nominal < last:
            end = min((batch + 1) * nominal, self.num_samples)
            if end <= last:
                yield batch, end
            batch += every

    def _save(self, val: Evaluation, previous_loss: float | None) -> BestFile:
        run = self._run
        metrics: dict[str, Any] = {
            "val_loss": val.loss,
            "val_accuracy": val.accuracy,
            "val_confusion": val.confusion,
            "val_ece": val.ece,
        }
        sidecar = {
            "config": run.request.model_dump(mode="json"),
            "metrics": metrics,
            "shapes": {
                "window": run.model.window,
                "row": list(run.model.shape),
                "num_classes": run.num_classes,
            },
            "versions": {"torch": torch.__version__},
            **run.sidecar,
        }
        return save_best(
            run.model, run.directory, epoch=self.number, previous_loss=previous_loss, sidecar=sidecar
        )

    def _observe_memory(self) -> Memory:
        memory = self._run.memory()
        for name in PEAKS:
            if (used := memory.get(name)) is not None:
                self._peaks[name] = max(used, self._peaks.get(name, 0))
        return memory
