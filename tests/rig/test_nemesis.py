"""The short form of `tests.rig.nemesis`; `make soak` has the long one, on both engines."""

from __future__ import annotations

from tests.rig.nemesis import rampage


def test_kills_while_jobs_train_change_no_bit() -> None:
    assert rampage(kills=15, seed=1)["kills"] >= 15
