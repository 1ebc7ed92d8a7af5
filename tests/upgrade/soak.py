"""An upgrade in mid-life, to the bit: root and undisturbed run are of the old commit's own code.

    python -m tests.upgrade.soak --jobs 20 --seed 7 --engine postgres

Needs the repository's history: the versions are checked out of it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.upgrade.life import STOPPED
from tests.upgrade.upgrading import upgraded, weights
from tests.upgrade.write_roots import VERSIONS, check_out, live_alone, live_and_cut

MEASURED = {"time", "duration_s", "samples_per_s", "ram_peak", "vram_peak"}


def upgrade_in_mid_life(commit: str, engine: str, folder: Path) -> int:
    """Let a version live, cut its power, go on under this one; return how many jobs kept their bits."""
    tree = check_out(commit, folder / "tree")
    whole = live_alone(tree, folder / "alone", tuple(STOPPED))
    served = live_and_cut(tree, folder / "root", engine, tuple(STOPPED))
    whole |= dict.fromkeys(("child", "again"), whole.pop("cancelled"))
    with upgraded(folder / "root") as new:
        ids = new.go_on(served)
        compared = [name for name in whole if name in ids]
        for name in compared:
            assert numeric(new.api.numbers(ids[name])) == numeric(whole[name]), name
            ours, theirs = weights(folder / "root", ids[name]), weights(folder / "alone", whole[name]["id"])
            assert ours.keys() == theirs.keys(), name
            assert all(torch.equal(ours[key], theirs[key]) for key in theirs), name
    return len(compared)


def numeric(found: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs between two runs of anything."""
    return {
        "epochs": [{k: v for k, v in epoch.items() if k not in MEASURED} for epoch in found["epochs"]],
        "batches": {k: v for k, v in found["batches"].items() if k not in MEASURED},
    }


def main() -> int:
    """Read the options, do rounds until there are as many jobs, print the totals."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["sqlite", "postgres"], default="sqlite")
    options = parser.parse_args()
    began, jobs = time.monotonic(), 0
    upgrades: list[str] = []
    while jobs < options.jobs:
        commit = VERSIONS[(options.seed + len(upgrades)) % len(VERSIONS)]
        with tempfile.TemporaryDirectory(prefix="saimp-upgrade-") as folder:
            jobs += upgrade_in_mid_life(commit, options.engine, Path(folder))
        upgrades.append(commit)
    totals = {"seed": options.seed, "engine": options.engine, "jobs": jobs, "upgrades": upgrades}
    print(json.dumps({**totals, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
