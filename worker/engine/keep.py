"""When resume checkpoints are taken, and the thread that writes them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.engine.checkpoint import Abandoned, Written, write
from worker.engine.events import CheckpointSaved, Warned

if TYPE_CHECKING:
    from worker.engine.epoch import Epoch
    from worker.engine.run import Run

FIRST_S = 30.0
COST = 0.01  # of the time of training that copying its state may take


class Keeper:
    """Keep resume checkpoints of a run, one being written at a time.

    Two phases: the state is copied where the run stands, then written by a thread while it goes on. The
    event follows at a later boundary, after every event up to the position, so a file never outruns its rows.
    every_s: seconds from one to the next, the first after 30 at most; 0 = every step; None = on request.
    Seconds become more where the copy holds the training up for more than a hundredth of them.
    """

    def __init__(self, every_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.is_requested = False
        self._every_s = every_s
        self._clock = clock
        self._due_at = None if every_s is None else clock() + min(every_s, FIRST_S)
        self._position: tuple[int, int, bool] | None = None  # of the newest
        self._writing: _Writing | None = None

    def visit(
        self, run: Run, epoch: Epoch, copy: Callable[[Run, Epoch], dict[str, Any]]
    ) -> Generator[CheckpointSaved | Warned, None, None]:
        """Do what is due at a boundary; on request, wait until the checkpoint of this very place is written.

        copy: takes the state.
        """
        is_due = self._due_at is not None and self._clock() >= self._due_at
        if not is_due and not self.is_requested and self._writing is None:
            return
        position = (epoch.number, epoch.trained, epoch.is_trained)
        # In validation the state stands still, and before the first step there is none worth keeping.
        is_due = is_due and position not in (self._position, (1, 0, False))
        is_waiting = self.is_requested or (is_due and self._every_s == 0)
        if self._writing is not None and (is_waiting or self._writing.is_over):
            yield self._collect()
        if self._writing is None and (is_due or (self.is_requested and position != self._position)):
            self._position = position
            began = self._clock()
            state = copy(run, epoch)
            if self._every_s is not None:
                now = self._clock()
                self._due_at = now + max(self._every_s, (now - began) / COST if self._every_s else 0.0)
            self._writing = _Writing(state, run.directory, run.num_applied, _event_of(run, epoch))
            if self.is_requested:
                self.is_requested = False
                yield self._collect()
        self.is_requested = False

    def close(self) -> None:
        """Let go of what is still being written; return when its thread has ended."""
        if self._writing is not None:
            self._writing.abandon()
            self._writing = None

    def _collect(self) -> CheckpointSaved | Warned:
        writing, self._writing = self._writing, None
        assert writing is not None
        outcome = writing.wait()
        if isinstance(outcome, Warned):
            self._position = None
        return outcome


class _Writing:
    """A checkpoint on its way to the disk."""

    def __init__(
        self, state: dict[str, Any], directory: Path, step: int, event: Callable[[Written], CheckpointSaved]
    ) -> None:
        self._state = state
        self._directory = directory
        self._stem = f"resume-s{step:08d}"
        self._event = event
        self._outcome: CheckpointSaved | Warned | BaseException | None = None
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def is_over(self) -> bool:
        return not self._thread.is_alive()

    def wait(self) -> CheckpointSaved | Warned:
        """Return what became of it, once it is known."""
        self._thread.join()
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def abandon(self) -> None:
        self._is_abandoned = True
        self._thread.join()

    def _run(self) -> None:
        try:
            written = write(self._state, self._directory, self._stem, ".pt", lambda: self._is_abandoned)
            self._outcome = self._event(written)
        except Abandoned:
            pass
        except OSError as error:
            # Training is worth more than its checkpoint: the next one may find room.
            self._outcome = Warned(
                "checkpoint_failed", f"A resume checkpoint could not be written: {error.strerror}."
            )
        except BaseException as error:  # crosses over to the caller, whatever it is
            self._outcome = error


def _event_of(run: Run, epoch: Epoch) -> Callable[[Written], CheckpointSaved]:
    """Note the position now; the file's name comes later."""
    number, batch, step, is_trained = epoch.number, epoch.batch, run.num_applied, epoch.is_trained
    best = run.best.name if run.best else None

    def event(written: Written) -> CheckpointSaved:
        return CheckpointSaved(
            written.name, written.sha256, written.size, number, batch, step, is_trained, best
        )

    return event
