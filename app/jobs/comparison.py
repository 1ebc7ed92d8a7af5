"""The comparison key: what two validation losses must share to be comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.config import JobRequest, canonical
from app.jobs.later import COMPARED, counted


def comparison_key(
    request: JobRequest,
    *,
    fingerprint: str,
    cuts_ns: Sequence[int | None],
    horizon_s: float | None,
    label_end: str | None,
    class_weights: Sequence[float] | None,
) -> str:
    """Name what a validation loss was measured on, and by which loss.

    cuts_ns, horizon_s, label_end, class_weights: as they were resolved. What came later counts only where it
    is not as it was before, so that no key there is changes.
    """
    data = request.data
    loss = counted({"loss": request.loss.model_dump(mode="json")})["loss"]
    shared = {
        "fingerprint": fingerprint,
        "cuts_ns": list(cuts_ns),
        "window": data.window,
        "stride": data.stride,
        "max_gap_s": data.max_gap_s,
        "embargo_s": data.embargo_s,
        "horizon_s": horizon_s,
        "label_end": label_end,
        "label": data.label,
        "loss": {**loss, "class_weights": class_weights},
    }
    key = _hash(shared)
    named = {path.removeprefix("data.") for path in COMPARED}
    more = counted(data.model_dump(mode="json", include=named), COMPARED, under="data")
    return _hash({"key": key, **more}) if more else key


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
