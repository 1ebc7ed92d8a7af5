"""The crash rigs and the use matrix for as long as there is time, and the tally of all their rounds.

    make soak MINUTES=30

Rounds of six rigs, the first four on both engines, each in a process of its own with a seed of its own;
whatever is furthest from its goal has the next round. The tally in bench/RESULTS.md is read, added to and
written after each one. A round that finds something wrong prints how to do it again, is counted, and makes
the exit code 1.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.rig import choices

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
RESULTS = ROOT / "bench" / "RESULTS.md"
BEGIN, END = "<!-- tally of make soak -->", "<!-- end of the tally -->"


@dataclass(frozen=True)
class Rig:
    """A command of rounds: `unit` of them are wanted in all, `share` of them in a round."""

    name: str
    engine: str
    unit: str
    goal: int
    share: int
    command: tuple[str, ...]

    @property
    def key(self) -> tuple[str, str]:
        return self.name, self.engine

    def line(self, seed: int, done: int) -> list[str]:
        """Write the command of one round. done: units of the rounds before it."""
        values = {"seed": seed, "share": self.share, "engine": self.engine, "done": done}
        return [sys.executable, *(part.format(**values) for part in self.command)]


def _rigs() -> Iterable[Rig]:
    rampage = ("--kills", "{share}", "--seed", "{seed}", "--url", "{engine}")
    for engine in ("sqlite", "postgres"):
        yield Rig("queue", engine, "kills", 5_000, 500, ("-m", "tests.rig.queue_nemesis", *rampage))
        yield Rig("training", engine, "kills", 250, 50, ("-m", "tests.rig.nemesis", *rampage))
        claims = ("bench/queue_soak.py", "--jobs", "{share}", "--url", "{engine}")
        yield Rig("claims", engine, "jobs", 100_000, 10_000, claims)
        upgrades = ("--jobs", "{share}", "--seed", "{seed}", "--engine", "{engine}")
        yield Rig("upgrade", engine, "jobs", 120, 10, ("-m", "tests.upgrade.soak", *upgrades))
    flips = ("-m", "tests.rig.bit_flips", "--flips", "{share}", "--seed", "{seed}")
    yield Rig("checkpoints", "-", "flips", 10_000, 1_000, flips)
    # In an order of its own that goes on where the last round ended, so that all of them come up.
    cells = ("-m", "tests.rig.use", "--cells", "{share}", "--first", "{done}")
    yield Rig("use", "-", "cells", len(choices.product()), 50, cells)


@dataclass(frozen=True)
class Round:
    """A line of the tally: what one run of `make soak` has done with one rig."""

    began: str
    rig: str
    engine: str
    rounds: int
    first_seed: int
    last_seed: int
    count: int
    wrong: int
    seconds: float

    def plus(self, seed: int, count: int, wrong: int, seconds: float) -> Round:
        """Add a round."""
        return Round(
            self.began,
            self.rig,
            self.engine,
            self.rounds + 1,
            self.first_seed or seed,
            seed,
            self.count + count,
            self.wrong + wrong,
            round(self.seconds + seconds, 1),
        )


def soak(minutes: float) -> int:
    """Do as many rounds as fit; return how many found something wrong."""
    rigs = list(_rigs())
    text = RESULTS.read_text()
    before = read(text)
    began = datetime.now(UTC)
    now = {rig.key: Round(f"{began:%Y-%m-%d %H:%M}", *rig.key, 0, 0, 0, 0, 0, 0.0) for rig in rigs}
    deadline = time.monotonic() + 60 * minutes
    while (left_s := deadline - time.monotonic()) > 0:
        rounds = [*before, *now.values()]
        fitting = [rig for rig in rigs if takes_s(rig, rounds) < left_s]
        if not fitting:
            break
        rig = min(fitting, key=lambda rig: _done(rig, rounds) / rig.goal)
        seed = int(time.time())
        count, wrong, seconds = play(rig, seed, _done(rig, rounds))
        now[rig.key] = now[rig.key].plus(seed, count, wrong, seconds)
        RESULTS.write_text(written(text, rigs, [*before, *(one for one in now.values() if one.rounds)]))
    return sum(one.wrong for one in now.values())


def takes_s(rig: Rig, rounds: Iterable[Round]) -> float:
    """Guess what a round takes, from those there have been."""
    spent = sum(one.seconds for one in rounds if (one.rig, one.engine) == rig.key)
    return rig.share * spent / max(_done(rig, rounds), rig.share)


def _done(rig: Rig, rounds: Iterable[Round]) -> int:
    return sum(one.count for one in rounds if (one.rig, one.engine) == rig.key)


def play(rig: Rig, seed: int, before: int = 0) -> tuple[int, int, float]:
    """Do one round: how many kills, jobs, flips or cells, whether it went wrong, how long it took.

    before: how many there were in the rounds before it.
    """
    began = time.monotonic()
    line = rig.line(seed, before)
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    seconds = round(time.monotonic() - began, 1)
    if done.returncode:
        print(f"WRONG: {' '.join(line[1:])}\n{done.stdout}{done.stderr}", flush=True)
        return 0, 1, seconds
    count = int(json.loads(done.stdout)[rig.unit])
    print(f"{rig.name:>11} {rig.engine:<8} seed {seed}: {count} {rig.unit} in {seconds:.0f} s", flush=True)
    return count, 0, seconds


# ---- the tally ----


def read(text: str) -> list[Round]:
    """Read the rounds of a tally."""
    found = []
    for line in _between(text).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(Round.__dataclass_fields__) and re.match(r"\d{4}-", cells[0]):
            began, rig, engine, *numbers, seconds = cells
            found.append(Round(began, rig, engine, *map(int, numbers), float(seconds)))
    return found


def written(text: str, rigs: Iterable[Rig], rounds: Iterable[Round]) -> str:
    """Write the tally into the text: totals first, then what they are the sums of."""
    totals = ["| rig | engine | wanted | done | wrong | hours |", "| --- | --- | --- | --- | --- | --- |"]
    for rig in rigs:
        its = [one for one in rounds if (one.rig, one.engine) == rig.key]
        count, wrong = sum(one.count for one in its), sum(one.wrong for one in its)
        hours = sum(one.seconds for one in its) / 3600
        totals.append(
            f"| {rig.name} | {rig.engine} | {rig.goal:,} {rig.unit} | {count:,} | {wrong} | {hours:.2f} |"
        )
    lines = [
        "| began (UTC) | rig | engine | rounds | first seed | last seed | done | wrong | seconds |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        *("| " + " | ".join(map(str, astuple(one))) + " |" for one in rounds),
    ]
    tally = "\n".join(["", *totals, "", *lines, ""])
    return text.replace(_between(text), tally)


def _between(text: str) -> str:
    return text.partition(BEGIN)[2].partition(END)[0]


def main() -> int:
    """Read the options and soak."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    wrong = soak(parser.parse_args().minutes)
    print(f"The tally is in {RESULTS.relative_to(ROOT)}; {wrong} rounds went wrong.")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
