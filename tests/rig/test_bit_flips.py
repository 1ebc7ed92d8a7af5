"""The short form of `tests.rig.bit_flips`."""

from __future__ import annotations

from tests.rig.bit_flips import damage


def test_no_checkpoint_with_a_flipped_bit_is_loaded_or_served() -> None:
    found = damage(flips=100, seed=1)
    assert min(found["doors"].values()) == 50
