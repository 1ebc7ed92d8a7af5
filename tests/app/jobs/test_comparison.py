"""What two jobs must share to be comparable, and what must never change a key there is."""

from __future__ import annotations

from typing import Any

import pytest

from app.jobs import later
from app.jobs.comparison import comparison_key
from app.jobs.config import CrossEntropyConfig, FocalConfig, JobRequest, OrdinalConfig
from tests.factories import make_request


class LaterCrossEntropy(CrossEntropyConfig):
    """The loss of a version to come."""

    temperature: float = 1.0


class LaterFocal(FocalConfig):
    temperature: float = 1.0


class LaterOrdinal(OrdinalConfig):
    temperature: float = 1.0


@pytest.fixture(autouse=True)
def tomorrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """List the field as whoever adds it does."""
    listed = {f"loss.{name}.temperature": 1.0 for name in ("cross_entropy", "focal", "ordinal")}
    monkeypatch.setattr(later, "BODY", listed)


def key_of(loss: Any) -> str:
    request: JobRequest = make_request().model_copy(update={"loss": loss})
    settled: dict[str, Any] = {"fingerprint": "f", "cuts_ns": (5, None), "horizon_s": 1.0, "label_end": None}
    return comparison_key(request, **settled, class_weights=None)


@pytest.mark.parametrize(
    ("today", "tomorrows", "key"),
    [
        (
            CrossEntropyConfig,
            LaterCrossEntropy,
            "4b3fb52129b4c6b2972752cdc513a56bb8d5fb66fa6f2b9f2579011c4e8e3ea9",
        ),
        (FocalConfig, LaterFocal, "9fa5a1e3f4d94b8b8a3f7f871fd5804b9d014b5eeb85f7b4d4e4fe77417a4ada"),
        (OrdinalConfig, LaterOrdinal, "aaafcc833cef2a7cdb15dbe6744c53d8fc39dfc0f2bd6dc3358c08efe5c81abd"),
    ],
)
def test_a_later_field_of_a_loss_counts_only_where_it_is_not_its_default(
    today: Any, tomorrows: Any, key: str
) -> None:
    assert key_of(today()) == key, "a key there is has changed"
    assert key_of(tomorrows()) == key
    assert key_of(tomorrows(temperature=2.0)) != key


def test_the_first_fields_of_a_loss_count_with_any_value() -> None:
    losses = [
        CrossEntropyConfig(),
        CrossEntropyConfig(label_smoothing=0.1),
        FocalConfig(),
        FocalConfig(gamma=0.0),
        OrdinalConfig(),
        OrdinalConfig(cost_weight=0.0),
        OrdinalConfig(cost=[[0.0, 1.0], [1.0, 0.0]]),
    ]
    assert len({key_of(loss) for loss in losses}) == len(losses)
