"""The one pass of an audit over all rows: what every check needs, in memory that does not grow with rows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from app.datasets.audit.hashes import HashSample, Ints, Words, mixed, row_hashes, window_hashes
from app.datasets.audit.sample import Sample, Sampler
from app.datasets.errors import PreflightTimeout
from app.datasets.moments import Moments
from app.datasets.scan import Rows, Scan
from app.datasets.schema import Dataset
from app.datasets.split import SplitPlan
from app.datasets.times import MAX_NS, floor_ns, rfc3339
from app.errors import shown
from app.jobs.config import DataConfig

KEPT_CONTENTS = 1 << 18
KEPT_PLACES = 1 << 16
MAX_MOMENTS = 1 << 18  # groups x elements kept apart


@dataclass(slots=True)
class EarlyEnds:
    """Rows whose label is known before they are. where: the first of them, for a message."""

    rows: int = 0
    where: str = ""


@dataclass(slots=True)
class Collected:
    """What one pass found. whole, train: moments by scope, "" for all groups together.

    windows: (part, time of its last row, rows in it that differ from the row before); rows: (part, time);
    places: content of evenly drawn rows that differ from the row before; part_rows: of each file and part.
    """

    sample: Sample
    whole: dict[str, Moments]
    train: dict[str, Moments]
    windows: HashSample
    rows: HashSample
    places: Words
    part_rows: Counter[tuple[str, int]]
    early_ends: EarlyEnds
    num_rows: int
    is_partial: bool


@dataclass(slots=True)
class _Lane:
    """The last T - 1 rows of a group: names of their contents, whether they differ, their parts."""

    names: Words = field(default_factory=lambda: np.empty(0, np.uint64))
    differs: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    parts: Ints = field(default_factory=lambda: np.empty(0, np.int64))


def collect(dataset: Dataset, data: DataConfig, plan: SplitPlan, deadline: float | None) -> Collected:
    """Read every row once; past `deadline` what was read so far is returned. Raises DataError."""
    collector = _Collector(dataset, data, plan)
    scan, is_partial = Scan(dataset, data, ()), False
    try:
        for lane, rows in scan.read(deadline, has_features=True):
            collector.add(lane, str(scan.groups[lane]), rows)
    except PreflightTimeout:
        is_partial = True
    return collector.result(is_partial)


class _Collector:
    def __init__(self, dataset: Dataset, data: DataConfig, plan: SplitPlan) -> None:
        self._horizon_ns, self._window = floor_ns(dataset.horizon_s), data.window
        self._starts = [MAX_NS if cut is None else cut for cut in plan.cuts_ns[: len(plan.parts) - 1]]
        self._elements = int(np.prod(dataset.features.shape))
        self._is_apart = len(plan.groups) > 1 and len(plan.groups) * self._elements <= MAX_MOMENTS
        self._sampler = Sampler(dataset)
        self._whole: dict[str, Moments] = {"": Moments(self._elements)}
        self._train: dict[str, Moments] = {"": Moments(self._elements)}
        self._windows = HashSample(KEPT_CONTENTS, 3)
        self._rows = HashSample(KEPT_CONTENTS, 2)
        self._places = HashSample(KEPT_PLACES, 1)
        self._part_rows: Counter[tuple[str, int]] = Counter()
        self._early = EarlyEnds()
        self._lanes: dict[int, _Lane] = {}
        self._num_rows = 0

    def add(self, lane: int, group: str, rows: Rows) -> None:
        assert rows.features_NE is not None
        parts_N = np.searchsorted(self._starts, rows.times_N, side="right").astype(np.int64)
        ends_N = np.minimum(rows.times_N, MAX_NS - self._horizon_ns) + self._horizon_ns
        if rows.ends_N is not None:
            self._count_early(rows)
            ends_N = np.maximum(ends_N, rows.ends_N)
        for part, num in zip(*np.unique(parts_N, return_counts=True), strict=True):
            self._part_rows[rows.file, int(part)] += int(num)
        for scope in ("", group) if self._is_apart else ("",):
            self._whole.setdefault(scope, Moments(self._elements)).add(rows.features_NE)
            train = self._train.setdefault(scope, Moments(self._elements))
            train.add(rows.features_NE[parts_N == 0])
        self._sampler.add(lane, rows, ends_N, parts_N)
        self._add_contents(self._lanes.setdefault(lane, _Lane()), rows, parts_N)
        self._num_rows += len(parts_N)

    def result(self, is_partial: bool) -> Collected:
        return Collected(
            sample=self._sampler.take(),
            whole=self._whole,
            train=self._train,
            windows=self._windows,
            rows=self._rows,
            places=self._places.take()[1][0].view(np.uint64),
            part_rows=self._part_rows,
            early_ends=self._early,
            num_rows=self._num_rows,
            is_partial=is_partial,
        )

    def _count_early(self, rows: Rows) -> None:
        assert rows.ends_N is not None
        early = np.flatnonzero(rows.ends_N < rows.times_N)
        if early.size and not self._early.rows:
            at = int(early[0])
            self._early.where = (
                f"{shown(rows.file)}, row {int(rows.at_N[at])}: label known at {rows_time(rows.ends_N[at])},"
                f" row at {rows_time(rows.times_N[at])}"
            )
        self._early.rows += int(early.size)

    def _add_contents(self, lane: _Lane, rows: Rows, parts_N: Ints) -> None:
        assert rows.features_NE is not None
        names_N = row_hashes(rows.features_NE)
        before = lane.names[-1:] if lane.names.size else names_N[:1] ^ np.uint64(1)
        differs_N = (names_N != np.concatenate([before, names_N[:-1]])).astype(np.int64)
        self._rows.add(names_N, parts_N, rows.times_N)
        place = np.arange(self._num_rows, self._num_rows + len(names_N), dtype=np.uint64)
        changed = differs_N == 1
        self._places.add(mixed(place)[changed], names_N[changed].view(np.int64))

        tail = max(self._window - 1, 1)
        names = np.concatenate([lane.names, names_N])
        differs = np.concatenate([lane.differs, differs_N])
        parts = np.concatenate([lane.parts, parts_N])
        # The kept rows are those before this batch: a window must end inside the batch.
        skip = len(names) - len(names_N) - (self._window - 1)
        names, differs_W, parts_W = (column[max(skip, 0) :] for column in (names, differs, parts))
        if len(names) >= self._window:
            sums = np.concatenate([[0], np.cumsum(differs_W)])
            # The first row of a window has no row before it that counts.
            changes = sums[self._window :] - sums[1 : len(sums) - self._window + 1]
            last = parts_W[self._window - 1 :]
            is_whole = parts_W[: len(last)] == last
            times = rows.times_N[len(rows.times_N) - len(last) :]
            hashes = window_hashes(names, self._window)
            self._windows.add(hashes[is_whole], last[is_whole], times[is_whole], changes[is_whole])
        lane.names = np.concatenate([lane.names, names_N])[-tail:]
        lane.differs = differs[-tail:]
        lane.parts = parts[-tail:]


def rows_time(ns: int) -> str:
    """Write a time of a row for a message."""
    return rfc3339(int(ns))
