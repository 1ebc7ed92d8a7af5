"""Noticing a runner that no longer gets on: a limit for each section between two events."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable

from app.jobs.queue import Reason
from worker.engine.events import BatchDone, Event, Phase, PhaseChanged, Prepared

# Seconds without an event. A step is judged by the steps before it, but never before STEP_FLOOR_S.
PREPARE_S = 3600.0
SAVE_S = 600.0
STEP_FLOOR_S = 300.0
STEP_FACTOR = 10.0
# Who has not looked for longer was stopped itself, and what it missed is held against nobody.
LOOK_S = 30.0


class Watchdog:
    """Watch the time between events. `verdict` says when a section has taken too long."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._phase: Phase = "preparing"
        self._last = self._looked = clock()
        self._between_rows: deque[float] = deque(maxlen=64)
        self._row_at: float | None = None

    def saw(self, event: Event) -> None:
        """Take note that the runner got on."""
        now = self._last = self._clock()
        match event:
            case PhaseChanged():
                self._phase = event.phase
                self._row_at = None
            case Prepared():
                self._phase = "training"
            case BatchDone():
                if self._row_at is not None:
                    self._between_rows.append(now - self._row_at)
                self._row_at = now
            case _:
                pass

    @property
    def limit_s(self) -> float:
        """How long the section the runner is in may take without an event."""
        if self._phase == "preparing":
            return PREPARE_S
        if self._phase == "saving":
            return SAVE_S
        usual_s = statistics.median(self._between_rows) if self._between_rows else 0.0
        return max(STEP_FLOOR_S, STEP_FACTOR * usual_s)

    def verdict(self) -> Reason | None:
        """Say what is wrong, or null while the runner gets on."""
        now = self._clock()
        self._last = min(now, self._last + max(0.0, now - self._looked - LOOK_S))
        self._looked = now
        silent_s = now - self._last
        if silent_s <= self.limit_s:
            return None
        return Reason(
            "stalled",
            f"The training process reported nothing for {silent_s:.0f} s while {self._phase}.",
            "The stacks of its threads are at the end of the job's log.",
        )
