"""Statuses, the one transition table, and what each ending means."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    QUEUED = "queued"  # waits for the worker; also after a stop or a crash with budget left
    RUNNING = "running"  # claimed: an attempt owns it
    PAUSED = "paused"  # freed the GPU, keeps its place
    SUCCEEDED = "succeeded"  # final: completed or early_stopped
    CANCELLED = "cancelled"  # final: by the user, or a dependency failed
    FAILED = "failed"  # final: the reason code says why

    @property
    def is_final(self) -> bool:
        return self in FINAL


FINAL = frozenset({Status.SUCCEEDED, Status.CANCELLED, Status.FAILED})

ARRIVES_FROM: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.PAUSED}),  # release, resume
    Status.RUNNING: frozenset({Status.QUEUED}),  # claim
    Status.PAUSED: frozenset({Status.QUEUED, Status.RUNNING}),
    Status.SUCCEEDED: frozenset({Status.RUNNING}),
    Status.CANCELLED: frozenset({Status.QUEUED, Status.PAUSED, Status.RUNNING}),
    Status.FAILED: frozenset({Status.RUNNING}),
}

# reason.code of an ending -> the status it ends in.
ENDINGS: dict[str, Status] = {
    "completed": Status.SUCCEEDED,
    "early_stopped": Status.SUCCEEDED,
    "user": Status.CANCELLED,
    "dependency_failed": Status.CANCELLED,
    "config_invalid": Status.FAILED,
    "data_invalid": Status.FAILED,
    "data_changed": Status.FAILED,
    "gpu_out_of_memory": Status.FAILED,
    "host_out_of_memory": Status.FAILED,
    "storage_error": Status.FAILED,
    "diverged": Status.FAILED,
    "stalled": Status.FAILED,
    "crash_loop": Status.FAILED,
    "max_runtime": Status.FAILED,
    "native_crash": Status.FAILED,
    "internal": Status.FAILED,
}
