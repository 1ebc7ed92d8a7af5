"""The comparison key: what two validation losses must share to be comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.config import JobRequest, canonical

# Fields of `data` that the first keys did not know, with the value those keys stand for.
_LATER: Mapping[str, Any] = {"group": None, "non_finite": "error", "fold": None}


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

    cuts_ns, horizon_s, label_end, class_weights: as they were resolved. A field that comes later (of `data`:
    into _LATER) counts only where it differs from its default, so that no key there is changes.
    """
    data = request.data
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
        "loss": {**request.loss.model_dump(mode="json"), "class_weights": class_weights},
    }
    key = _hash(shared)
    fields = data.model_dump(mode="json", include=set(_LATER))
    later = {name: value for name, value in fields.items() if value != _LATER[name]}
    return _hash({"key": key, **later}) if later else key


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
