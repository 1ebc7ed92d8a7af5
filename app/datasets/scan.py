"""One streamed pass over time, label, label end and group: every window candidate to its part or its reason.

Vectorised inside a batch; between batches a group keeps a few numbers, so windows cross the borders of
row groups and files without their rows being held. N rows of a batch and group, C candidates.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from app.datasets.errors import (
    BadGroup,
    BadTimestamp,
    DataChanged,
    DataError,
    FilesOverlap,
    LabelOutOfRange,
    NotChronological,
    PreflightTimeout,
)
from app.datasets.overlap import Lengths, Uniqueness
from app.datasets.parquet import BATCH_ROWS, RowBatch, read_columns, read_footer_bytes
from app.datasets.schema import DataFile, Dataset, refuse_longer_lists
from app.datasets.times import MAX_NS, Times, as_ns, ceil_ns, detect_unit, floor_ns, raw_times, rfc3339
from app.datasets.values import decoded_row_bytes, read_features
from app.errors import shown
from app.jobs.config import DataConfig

MAX_CLASSES = 256
MAX_GROUPS = 256
MAX_LABELS_SHOWN = 12
MAX_LABELS_COUNTED = 1000
FEATURE_BATCH_BYTES = 1 << 24  # features decoded at once

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(slots=True)
class PartTally:
    """Counts of one part, and its accepted windows as runs [first, count] for each group.

    purged, embargoed, gap: dropped windows, each under the first reason that holds. labels: of a group's
    accepted windows, how much they overlap; empty when nothing says how far they look ahead.
    """

    rows: int = 0
    windows: int = 0
    purged: int = 0
    embargoed: int = 0
    gap: int = 0
    start_ns: int | None = None
    end_ns: int | None = None
    class_counts: Ints = field(default_factory=lambda: np.zeros(MAX_CLASSES, dtype=np.int64))
    runs: dict[int, list[list[int]]] = field(default_factory=dict)
    labels: defaultdict[int, Uniqueness] = field(default_factory=lambda: defaultdict(Uniqueness))


@dataclass(slots=True)
class _Lane:
    """What a group carries from batch to batch.

    rows: seen so far; solid_from: first row after the last gap; clear_from: of a part, the first row past its
    embargo, once seen; tail: the times of the last T - 1 rows, in pieces.
    """

    rows: int = 0
    last_ns: int | None = None
    last_file: str = ""
    solid_from: int = 0
    clear_from: dict[int, int] = field(default_factory=dict)
    tail: deque[tuple[int, Times]] = field(default_factory=deque)


@dataclass(frozen=True, slots=True)
class Rows:
    """N rows of one group from one batch.

    at_N: their rows in the file; ends_N: when labels are known; features_NE: as stored, when asked for.
    """

    file: str
    at_N: Ints
    times_N: Times
    labels_N: Ints
    ends_N: Times | None
    features_NE: NDArray[Any] | None = None


class Scan:
    """Places every window in the parts that begin at given times.

    cuts_ns: first row time of each part after the first, None where no row is left for it.
    num_exempt: parts at the beginning whose windows may follow their start at once, without embargo.
    """

    def __init__(
        self, dataset: Dataset, data: DataConfig, cuts_ns: Sequence[int | None], num_exempt: int = 1
    ) -> None:
        self._dataset, self._window, self._stride = dataset, data.window, data.stride
        self._gap_ns = None if data.max_gap_s is None else floor_ns(data.max_gap_s)
        self._horizon_ns = floor_ns(dataset.horizon_s)
        self._starts = [0, *(MAX_NS if cut is None else cut for cut in cuts_ns)]
        self.parts = [PartTally() for _ in self._starts]
        # A window is purged when its label ends at or after the first row of the next part that exists.
        self._next_starts = [*self._starts[1:], None]
        embargo_ns = ceil_ns(data.embargo_s)
        self._clear_ns = [
            start if part < num_exempt else min(start + embargo_ns, MAX_NS)
            for part, start in enumerate(self._starts)
        ]
        self._lanes: list[_Lane] = []
        self._groups: dict[str | int, int] = {}
        self._labels: Counter[int | None] = Counter()
        self._bad_label: str | None = None
        self._early_ends = 0
        self.ahead = Lengths()  # from each row to its label_end
        self._end_unit: Any = None
        self._faults: dict[type[DataError], DataError] = {}

    @property
    def groups(self) -> list[str | int]:
        """Group values in the order of first appearance; [""] when ungrouped."""
        return list(self._groups) or [""]

    @property
    def num_early_label_ends(self) -> int:
        """Rows whose label_end is before their own time."""
        return self._early_ends

    @property
    def max_label(self) -> int:
        """The largest label seen."""
        return max((label for label in self._labels if label is not None), default=0)

    @property
    def label_counts(self) -> dict[int, int]:
        """Rows of each label seen."""
        return {label: count for label, count in self._labels.items() if label is not None}

    def read(
        self, deadline: float | None = None, *, has_features: bool = False
    ) -> Iterator[tuple[int, Rows]]:
        """Decode all rows in order, each batch parted by group. Raises DataError, PreflightTimeout."""
        dataset = self._dataset
        names = (dataset.timestamp, dataset.label, dataset.label_end, dataset.group)
        columns = [name for name in names if name is not None]
        batch_rows = None
        if has_features:
            columns += dataset.features.columns
            batch_rows = max(1, min(BATCH_ROWS, FEATURE_BATCH_BYTES // decoded_row_bytes(dataset.features)))
        for file in dataset.files:
            num_rows = 0
            if has_features and dataset.features.layout == "list":
                content = read_footer_bytes(file.path, file.name)
                refuse_longer_lists(file.path, file.name, content, dataset.features, file.row_groups)
            batches = read_columns(file.path, file.name, columns, batch_rows=batch_rows, deadline=deadline)
            for batch in batches:
                num_rows += len(batch.columns[dataset.timestamp])
                features_NE = None
                if has_features:
                    features_NE = read_features(batch.columns, dataset.features, file.name, batch.first_row)
                yield from self._split(file, batch, features_NE)
            if num_rows != file.rows:
                raise DataChanged(f"{shown(file.name)} changed while it was read.", "Submit again.")

    def run(self, deadline: float | None = None) -> None:
        """Place every window. Raises the faults found, one of each kind with its first place."""
        try:
            for lane, rows in self.read(deadline):
                if NotChronological in self._faults or FilesOverlap in self._faults:
                    continue  # rows out of order have no windows; their labels are still checked
                try:
                    self._place(lane, rows)
                except (NotChronological, FilesOverlap) as fault:
                    self._note(fault)
        except DataError as fault:
            self._note(fault)
        except PreflightTimeout:
            if not self._faults and self._bad_label is None:
                raise
        if self._bad_label is not None:
            self._note(self._label_fault(self._bad_label))
        if self._faults:
            raise DataError.of(list(self._faults.values()))

    def _note(self, fault: DataError) -> None:
        self._faults.setdefault(type(fault), fault)

    # Decode

    def _split(
        self, file: DataFile, batch: RowBatch, features_NE: NDArray[Any] | None
    ) -> Iterator[tuple[int, Rows]]:
        """Decode a batch and part it by group, each group's rows in file order."""
        dataset, first = self._dataset, batch.first_row
        raw = raw_times(batch.columns[dataset.timestamp], dataset.timestamp, file.name, first)
        times = as_ns(
            raw,
            dataset.timestamp_unit,
            dataset.timestamp,
            file.name,
            first,
            is_detected=dataset.is_unit_detected,
        )
        labels = self._read_labels(batch.columns[dataset.label], file.name, first)
        ends = None
        if dataset.label_end is not None:
            ends = self._read_ends(batch.columns[dataset.label_end], dataset.label_end, file.name, first)
            self._early_ends += int(np.count_nonzero(ends < times))
            self.ahead.add(ends - times)
        at = np.arange(first, first + len(times))
        if dataset.group is None:
            if not self._lanes:
                self._lanes.append(_Lane())
            yield 0, Rows(file.name, at, times, labels, ends, features_NE)
            return
        lanes = self._read_groups(batch.columns[dataset.group], dataset.group, file.name, first)
        order = np.argsort(lanes, kind="stable")
        counts = np.bincount(lanes, minlength=len(self._lanes))
        borders = np.cumsum(counts)
        for lane in np.flatnonzero(counts):
            chosen = order[borders[lane] - counts[lane] : borders[lane]]
            yield (
                int(lane),
                Rows(
                    file.name,
                    at[chosen],
                    times[chosen],
                    labels[chosen],
                    None if ends is None else ends[chosen],
                    None if features_NE is None else features_NE[chosen],
                ),
            )

    def _read_ends(self, array: Any, column: str, file: str, first_row: int) -> Times:
        try:
            raw = raw_times(array, column, file, first_row)
            stored = getattr(array.type, "unit", None)
            if self._end_unit is None:
                self._end_unit = stored or detect_unit(int(raw[0]))
            return as_ns(raw, self._end_unit, column, file, first_row, is_detected=stored is None)
        except BadTimestamp as fault:
            raise fault.at("/data/label_end") from None

    def _read_labels(self, array: Any, file: str, first_row: int) -> Ints:
        """Decode labels and count them; a bad one is remembered, counted and read as class 0."""
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        nulls = int(array.null_count)
        is_null = np.asarray(array.is_null()) if nulls else None
        # Unsigned values beyond 2^63 are out of range whatever they are.
        wide = pc.fill_null(array, 0) if nulls else array
        labels: Ints = np.asarray(wide.cast(pa.int64(), safe=False))
        limit = len(self._dataset.classes) if self._dataset.classes else MAX_CLASSES
        bad = (labels < 0) | (labels >= limit)
        if is_null is not None:
            bad |= is_null
            self._labels[None] += nulls
        if bad.any():
            place = int(np.argmax(bad))
            if self._bad_label is None:
                found = "missing" if is_null is not None and is_null[place] else str(labels[place])
                self._bad_label = f"{shown(file)}, row {first_row + place} is {found}"
            for value, count in zip(*np.unique(labels, return_counts=True), strict=True):
                if len(self._labels) < MAX_LABELS_COUNTED or int(value) in self._labels:
                    self._labels[int(value)] += int(count)
            if nulls:
                self._labels[0] -= nulls
            return np.where(bad, 0, labels)
        counts = np.bincount(labels)
        for value in np.flatnonzero(counts):
            self._labels[int(value)] += int(counts[value])
        return labels

    def _label_fault(self, where: str) -> LabelOutOfRange:
        limit = len(self._dataset.classes) if self._dataset.classes else MAX_CLASSES
        histogram = sorted(
            ((v, c) for v, c in self._labels.items() if c), key=lambda item: (item[0] is None, item[0] or 0)
        )
        listed = ", ".join(f"{'missing' if v is None else v}: {c:,}" for v, c in histogram[:MAX_LABELS_SHOWN])
        more = ", ..." if len(histogram) > MAX_LABELS_SHOWN else ""
        return LabelOutOfRange(
            f"{shown(self._dataset.label)!r} must be an integer in 0..{limit - 1}; {where}."
            f" Found {listed}{more}.",
            f"Labels seem to start at 1: store label - 1, so that the classes are 0..{limit - 1}."
            if {label for label, _ in histogram} == set(range(1, limit + 1))
            else "Relabel the rows, or name all K classes in data.classes.",
        )

    def _read_groups(self, array: Any, column: str, file: str, first_row: int) -> NDArray[np.int16]:
        """Return each row's lane. Raises BadGroup for a missing value or too many of them."""
        if array.null_count:
            row = first_row + int(pc.index(array.is_null(), pa.scalar(True)).as_py())
            raise BadGroup(f"{shown(file)}, row {row}: {shown(column)!r} is missing.", "Name its group.")
        encoded = array if pa.types.is_dictionary(array.type) else array.dictionary_encode()
        codes = np.asarray(encoded.indices.cast(pa.int64()))
        lane_of_code = np.zeros(len(encoded.dictionary), dtype=np.int16)  # 16 bits sort in linear time
        used = np.unique(codes)
        for code in used[: MAX_GROUPS + 1]:
            value = encoded.dictionary[int(code)].as_py()
            if value is None:
                raise BadGroup(f"{shown(file)}: {shown(column)!r} has a missing value.", "Name its group.")
            lane = self._groups.setdefault(value, len(self._groups))
            if lane == len(self._lanes):
                self._lanes.append(_Lane())
            lane_of_code[code] = lane
        if len(self._groups) > MAX_GROUPS:
            raise BadGroup(
                f"{shown(column)!r} has more than {MAX_GROUPS} values, reached in {shown(file)}.",
                "Choose a column with fewer values, or train on fewer of them.",
            )
        lanes: NDArray[np.int16] = lane_of_code[codes]
        return lanes

    # Place

    def _place(self, index: int, rows: Rows) -> None:
        """Give every window that ends in these rows to a part or to a reason."""
        lane, times_N = self._lanes[index], rows.times_N
        self._check_order(lane, rows)
        first, num_rows = lane.rows, len(times_N)
        solid_N = self._solid(lane, times_N)
        lane.last_file = rows.file
        for part, clear_ns in enumerate(self._clear_ns):
            if part not in lane.clear_from and times_N[-1] >= clear_ns:
                lane.clear_from[part] = first + int(np.searchsorted(times_N, clear_ns))
        self._remember(lane, first, times_N)

        edges = [*(int(e) for e in np.searchsorted(times_N, self._starts)), num_rows]
        # The grid: rows T-1, T-1+stride, ... of the group, never restarted.
        skip = (
            self._window - 1 - first if first < self._window else -(first - self._window + 1) % self._stride
        )
        ends_C = np.arange(max(skip, 0), num_rows, self._stride)
        for part, (left, right) in enumerate(pairwise(edges)):
            tally = self.parts[part]
            tally.rows += max(0, right - left)
            at_C = ends_C[np.searchsorted(ends_C, left) : np.searchsorted(ends_C, right)]
            if not at_C.size:
                continue
            starts_C = at_C + (first - self._window + 1)
            late_C = self._is_late(part, rows, at_C)
            clear = lane.clear_from.get(part)
            early_C = starts_C < (first + num_rows if clear is None else clear)
            broken_C = np.zeros(len(at_C), dtype=np.bool_) if solid_N is None else starts_C < solid_N[at_C]
            tally.purged += int(np.count_nonzero(late_C))
            tally.embargoed += int(np.count_nonzero(early_C & ~late_C))
            tally.gap += int(np.count_nonzero(broken_C & ~early_C & ~late_C))
            used_C = ~(late_C | early_C | broken_C)
            if used_C.any():
                self._accept(tally, index, rows, at_C, used_C)
        lane.rows += num_rows

    def _check_order(self, lane: _Lane, rows: Rows) -> None:
        times_N = rows.times_N
        back = np.flatnonzero(times_N[1:] < times_N[:-1])
        group = "" if self._dataset.group is None else " of the same group"
        if lane.last_ns is not None and times_N[0] < lane.last_ns:
            before, after = rfc3339(lane.last_ns), rfc3339(int(times_N[0]))
            if lane.last_file == rows.file:
                raise _disorder(rows.file, int(rows.at_N[0]), before, after, group)
            raise FilesOverlap(
                f"{shown(lane.last_file)} ends at {before}, but {shown(rows.file)}, which begins later,"
                f" has{group and ' for the same group'} {after} at row {int(rows.at_N[0])}.",
                "Files may not overlap in time (inside a group); split them by period, or name data.group.",
            )
        if back.size:
            place = int(back[0])
            before, after = rfc3339(int(times_N[place])), rfc3339(int(times_N[place + 1]))
            raise _disorder(rows.file, int(rows.at_N[place + 1]), before, after, group)

    def _solid(self, lane: _Lane, times_N: Times) -> Ints | None:
        """For each row, the first row of the group since the last gap; and carry it on."""
        last, lane.last_ns = lane.last_ns, int(times_N[-1])
        if self._gap_ns is None:
            return None
        steps_N = np.diff(times_N, prepend=times_N[0] if last is None else last)
        broke_N = np.where(steps_N > self._gap_ns, np.arange(lane.rows, lane.rows + len(times_N)), 0)
        solid_N = np.maximum(np.maximum.accumulate(broke_N), lane.solid_from)
        lane.solid_from = int(solid_N[-1])
        return solid_N

    def _is_late(self, part: int, rows: Rows, at_C: Ints) -> Mask:
        next_start = self._next_starts[part]
        if next_start is None:
            return np.zeros(len(at_C), dtype=np.bool_)
        late_C = rows.times_N[at_C] >= next_start - self._horizon_ns
        return late_C if rows.ends_N is None else late_C | (rows.ends_N[at_C] >= next_start)

    def _remember(self, lane: _Lane, first: int, times_N: Times) -> None:
        lane.tail.append((first, times_N))
        need_from = first - self._window + 1
        while len(lane.tail) > 1 and lane.tail[1][0] <= need_from:
            lane.tail.popleft()

    def _time_of(self, lane: _Lane, row: int) -> int:
        """The time of a row of the group that is among the last T."""
        first, times = next((f, t) for f, t in reversed(lane.tail) if f <= row)
        return int(times[row - first])

    def _accept(self, tally: PartTally, index: int, rows: Rows, at_C: Ints, used_C: Mask) -> None:
        lane, used = self._lanes[index], at_C[used_C]
        tally.windows += len(used)
        tally.class_counts += np.bincount(rows.labels_N[used], minlength=MAX_CLASSES)
        if rows.ends_N is not None:
            tally.labels[index].add(rows.times_N[used], rows.ends_N[used])
        elif self._horizon_ns:
            tally.labels[index].add(rows.times_N[used], rows.times_N[used] + self._horizon_ns)
        end_ns = int(rows.times_N[used[-1]])
        tally.end_ns = end_ns if tally.end_ns is None else max(tally.end_ns, end_ns)
        runs = tally.runs.setdefault(index, [])
        if not runs:
            start_ns = self._time_of(lane, lane.rows + int(used[0]) - self._window + 1)
            tally.start_ns = start_ns if tally.start_ns is None else min(tally.start_ns, start_ns)
        edges = np.flatnonzero(np.diff(used_C, prepend=False, append=False))
        for left, right in zip(edges[::2], edges[1::2], strict=True):
            first, count = lane.rows + int(at_C[left]), int(right - left)
            if runs and runs[-1][0] + runs[-1][1] * self._stride == first:
                runs[-1][1] += count
            else:
                runs.append([first, count])


def _disorder(file: str, row: int, before: str, after: str, group: str) -> NotChronological:
    return NotChronological(
        f"{shown(file)}, row {row}: {after} comes after {before}{group and ' ' + group.strip()}.",
        "Sort the rows by time (inside each group), or name the column that separates series in data.group.",
    )
