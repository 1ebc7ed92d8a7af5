"""The comparison key: what two validation losses must share to be comparable."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from app.jobs.config import JobRequest, Section, canonical

# Fields of `data` that the first keys did not know, with the value those keys stand for.
_LATER: Mapping[str, Any] = {"group": None, "non_finite": "error", "fold": None}
# Fields of a loss that the first keys knew: they count with any value.
_FIRST = {
    "cross_entropy": {"name", "class_weights", "label_smoothing"},
    "focal": {"name", "class_weights", "gamma"},
    "ordinal": {"name", "class_weights", "cost", "cost_weight"},
}


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
    into _LATER; of a loss: any) counts only where it differs from its default, so that no key there is
    changes.
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
        "loss": {**_counted(request.loss), "class_weights": class_weights},
    }
    key = _hash(shared)
    fields = data.model_dump(mode="json", include=set(_LATER))
    later = {name: value for name, value in fields.items() if value != _LATER[name]}
    return _hash({"key": key, **later}) if later else key


def _counted(loss: Section) -> dict[str, Any]:
    body = loss.model_dump(mode="json")
    fields, first = type(loss).model_fields, _FIRST.get(body["name"], {"name"})
    return {
        name: value
        for name, value in body.items()
        if name in first or getattr(loss, name) != fields[name].get_default(call_default_factory=True)
    }


def _hash(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()
