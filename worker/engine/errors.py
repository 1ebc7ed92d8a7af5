"""How an attempt fails inside the engine."""

from __future__ import annotations

from typing import Any

from app.errors import ServiceError


class ConfigInvalid(ServiceError):
    """The job cannot run as configured on this machine or on these data."""

    status, code = 422, "config_invalid"


class GpuOutOfMemory(ServiceError):
    """The GPU has too little memory for this job, even at the smallest micro-batch."""

    status, code = 507, "gpu_out_of_memory"

    def __init__(self, message: str, hint: str, evidence: dict[str, Any]) -> None:
        super().__init__(message, hint)
        self.evidence = evidence


class CorruptCheckpoint(ServiceError):
    """A resume checkpoint is not the file that was written, or not of this run."""

    status, code = 500, "storage_error"
