"""What can be wrong with rows that is only seen when features are read, besides app/datasets/errors.py."""

from __future__ import annotations

from app.datasets.errors import DataError


class NonFinite(DataError):
    """A feature is NaN or infinite."""

    code = "non_finite"
    pointer = "/data/non_finite"


class StreamBudgetTooSmall(DataError):
    """The rows that must be held at once do not fit the memory of the stream."""

    code = "stream_budget_too_small"
