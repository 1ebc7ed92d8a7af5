"""Every failpoint is reached, and a kill there costs nothing but time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.failpoints import POINTS, VERBS
from tests.rig.house import House
from tests.rig.life import MAX_LIVES, assert_settled, ended, live, open_house, submit
from tests.rig.oracle import assert_same, numbers

# The worker's own steps; the other half are its runner's and the API's.
OF_WORKER = frozenset(
    name
    for name in POINTS
    if name.split(".")[0] in {*VERBS[VERBS.index("greet") :], "start", "publish", "crown", "prune"}
)


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with open_house(tmp_path) as house:
        yield house


@pytest.mark.parametrize(
    "names", [OF_WORKER, POINTS - OF_WORKER], ids=["the worker's", "the runner's and the API's"]
)
def test_a_kill_at_every_point_changes_no_bit(house: House, names: frozenset[str]) -> None:
    whole = numbers(house.queue, ended(house, submit(house, "whole")).id)
    for name in names:
        house.points.arm(name, "kill")
    lived = [live(house, "life-1")]
    while (left := house.points.armed()) and len(lived) < MAX_LIVES:
        lived.append(live(house, f"life-{len(lived) + 1}"))
    assert not left, f"never reached: {sorted(left)}"
    for job_id in lived:
        assert_same(numbers(house.queue, job_id), whole, job_id)
    assert_settled(house)
