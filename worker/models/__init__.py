"""Models: one file per architecture, its paper cited. `load` reads a best checkpoint back."""

from worker.models.base import SequenceModel, num_parameters
from worker.models.build import build_model, flops_per_sample
from worker.models.load import CorruptCheckpoint, load

__all__ = [
    "CorruptCheckpoint",
    "SequenceModel",
    "build_model",
    "flops_per_sample",
    "load",
    "num_parameters",
]
