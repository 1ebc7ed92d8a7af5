"""The size of a model for the plan, asked of a short-lived process: this one never loads torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache

from app.jobs.config import ModelConfig, canonical

TIMEOUT_S = 60.0
UNKNOWN: Mapping[str, int | None] = {"parameters": None, "flops_per_sample": None}


def model_size(
    config: ModelConfig,
    *,
    window: int,
    shape: Sequence[int],
    num_classes: int,
    custom_prefixes: Sequence[str] = (),
) -> Mapping[str, int | None]:
    """Count parameters and the floating-point operations of one forward pass; nulls when that fails.

    A few seconds for a model not asked about before, since torch is imported.
    """
    question = {
        "model": config.model_dump(mode="json"),
        "window": window,
        "shape": list(shape),
        "num_classes": num_classes,
        "allowed_prefixes": list(custom_prefixes),
    }
    try:
        return _ask(canonical(question))
    except (OSError, ValueError, subprocess.SubprocessError):
        return UNKNOWN


@lru_cache(maxsize=256)
def _ask(question: str) -> Mapping[str, int | None]:
    done = subprocess.run(
        [sys.executable, "-m", "worker.describe"],
        input=question,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )
    answer: dict[str, int | None] = json.loads(done.stdout)
    return answer
