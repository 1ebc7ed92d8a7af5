"""The short form of `tests.rig.nemesis`."""

from __future__ import annotations

import pytest

from tests.postgres.server import IS_INSTALLED
from tests.rig.nemesis import rampage


@pytest.mark.parametrize(
    "engine",
    ["sqlite", pytest.param("postgres", marks=pytest.mark.skipif(not IS_INSTALLED, reason="not installed"))],
)
def test_kills_while_jobs_train_change_no_bit(engine: str) -> None:
    assert rampage(kills=15, seed=1, url=engine)["kills"] >= 15
