"""How an attempt fails inside the engine."""

from __future__ import annotations

import errno
from typing import Any

import torch

from app.errors import ServiceError

# How libraries say so that allocate by themselves, past torch's allocator.
GPU_EXHAUSTED = (
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDA error: out of memory",
)
# How they say that the device has failed.
GPU_LOST = ("CUDA error", "CUBLAS_STATUS_", "CUDNN_STATUS_", "cuDNN error")
# How torch says so of the host's memory: a plain RuntimeError.
HOST_EXHAUSTED = "DefaultCPUAllocator: can't allocate memory"


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


class RestartSmaller(Exception):
    """The GPU ran out of memory where nothing can be undone: the next attempt starts on a lower rung."""


def is_gpu_exhausted(error: Exception) -> bool:
    """Tell whether the GPU's memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(name in str(error) for name in GPU_EXHAUSTED)
    )


def is_gpu_lost(error: Exception) -> bool:
    """Tell whether the GPU failed in a way that no call of this process gets over. Its memory is no such."""
    return isinstance(error, torch.AcceleratorError) or (
        isinstance(error, RuntimeError) and any(name in str(error) for name in GPU_LOST)
    )


def first_line(error: Exception) -> str:
    """Take what is worth telling from a message of many lines."""
    return str(error).strip().partition("\n")[0]


def is_host_exhausted(error: Exception) -> bool:
    """Tell whether the machine's own memory ran out: no smaller micro-batch would help."""
    match error:
        case MemoryError():
            return True
        case OSError():
            return error.errno == errno.ENOMEM
        case RuntimeError():
            return HOST_EXHAUSTED in str(error)
        case _:
            return False
