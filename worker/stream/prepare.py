"""What a job must know of its features before it trains: their scale, and which are not finite. One pass.

Shapes: R rows of a block, N of them in some order, W runs, F... the shape of one row, G groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from typing import Literal, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.datasets.errors import EmptySplit
from app.datasets.schema import Dataset
from app.datasets.split import PartPlan, SplitPlan, WindowRun
from app.datasets.times import UNIT_NS
from worker.stream.ahead import ReadAhead
from worker.stream.block import Block
from worker.stream.files import Files
from worker.stream.layout import lay_out
from worker.stream.reader import Reader
from worker.stream.statistics import Moments, Quantiles
from worker.stream.windows import GROUP_KEY, Ints, Windows

BLOCK_BYTES = 4 * 2**20  # whatever the budget, so that the result does not depend on it

Normalize = Literal["none", "standard", "robust"]
NonFiniteRule = Literal["error", "skip", "zero"]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Surveyed:
    """The plan without the windows that are left out, and the features' scale.

    center_F, scale_F: float64 [*shape], scale > 0; null without normalisation. num_bad_rows: those with a
    feature that is not finite; null when no pass looked for them.
    """

    plan: SplitPlan
    center_F: Tensor | None
    scale_F: Tensor | None
    num_bad_rows: int | None


def survey(dataset: Dataset, plan: SplitPlan, normalize: Normalize, non_finite: NonFiniteRule) -> Surveyed:
    """Read the features once, if need be. Statistics are those of the finite rows before the first cut.

    Raises DataError for what is wrong with the data, EmptySplit when no window of a part is finite.
    """
    statistics: Moments | Quantiles | None
    num_features = prod(dataset.features.shape)
    match normalize:
        case "none":
            statistics = None
        case "standard":
            statistics = Moments(num_features)
        case "robust":
            statistics = Quantiles(num_features)
        case _:
            assert_never(normalize)
    is_sieving = non_finite != "error"
    if statistics is None and not is_sieving:
        return Surveyed(plan, None, None, None)
    sieve, num_bad_rows = _Sieve(plan), 0
    rows_G = np.zeros(len(plan.groups), np.int64)
    for block in _blocks(dataset, plan, is_whole=is_sieving):
        rows_RF = block.rows_RF.flatten(1)
        is_finite_R = _finite(rows_RF)
        if statistics is not None:
            # In runs: rows that are picked one by one would be copied.
            for first, last in _spans(is_finite_R & _is_train(dataset, plan, block)):
                statistics.add(rows_RF[first:last])
        if is_sieving:
            num_bad_rows += int(np.count_nonzero(~is_finite_R))
            keys_R = _keys(block, rows_G)
            if non_finite == "skip":
                sieve.add(keys_R, ~is_finite_R, block.labels_R.numpy())
    center_F = scale_F = None
    if statistics is not None:
        center_F, scale_F = (x_F.view(dataset.features.shape) for x_F in statistics.location_and_spread())
        # To float32, in which the model divides.
        scale_F = torch.where(scale_F.float() > 0, scale_F, 1.0)
    return Surveyed(
        sieve.plan() if is_sieving else plan, center_F, scale_F, num_bad_rows if is_sieving else None
    )


def _blocks(dataset: Dataset, plan: SplitPlan, *, is_whole: bool) -> Iterator[Block]:
    """Yield the blocks in content order; is_whole: also those behind the training rows."""
    layout = lay_out(dataset, BLOCK_BYTES)
    stop = dataset.rows if is_whole or dataset.group is not None else plan.train.rows
    reader = Reader(dataset, layout, plan.groups, Files(dataset), verify_checksums=True)
    with closing(ReadAhead(reader.blocks(layout.extents(0, lambda first, _: first < stop)))) as blocks:
        yield from blocks


def _finite(rows_RF: Tensor) -> Mask:
    # A sum is not finite if any element is not; also when it overflows.
    if torch.isfinite(rows_RF.sum()):
        return np.ones(len(rows_RF), np.bool_)
    is_finite_R: Mask = torch.isfinite(rows_RF).all(1).numpy()
    return is_finite_R


def _is_train(dataset: Dataset, plan: SplitPlan, block: Block) -> Mask:
    """Tell which rows are before the first cut: all of them, used or not, of all groups."""
    if dataset.group is None:
        return np.arange(block.start, block.stop) < plan.train.rows
    cut_ns = plan.cuts_ns[0]
    if cut_ns is None:
        return np.ones(len(block), np.bool_)
    return block.times_R < cut_ns // UNIT_NS[dataset.timestamp_unit]


def _spans(is_in_R: Mask) -> Iterator[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(is_in_R, prepend=False, append=False))
    return zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _keys(block: Block, rows_G: Ints) -> Ints:
    """Return the key of each row, [R]; rows_G counts the rows of each group so far, and is moved on."""
    if not len(block.groups_R):
        return np.arange(block.start, block.stop)
    groups_R = block.groups_R
    order_R = np.argsort(groups_R, kind="stable")
    count_G = np.bincount(groups_R, minlength=len(rows_G))
    keys_R = np.empty_like(groups_R)
    within_R = np.arange(len(groups_R)) - np.repeat(np.cumsum(count_G) - count_G, count_G)
    keys_R[order_R] = groups_R[order_R] * GROUP_KEY + rows_G[groups_R[order_R]] + within_R
    rows_G += count_G
    return keys_R


class _Sieve:
    """Finds the windows that hold a bad row, block by block."""

    def __init__(self, plan: SplitPlan) -> None:
        self._plan = plan
        self._parts = {name: Windows(part, plan.window, plan.stride) for name, part in plan.parts.items()}
        self._dropped: dict[str, list[Ints]] = {name: [] for name in self._parts}  # keys of their last rows
        self._labels: dict[str, list[Ints]] = {name: [] for name in self._parts}
        # The key of each group's last bad row; before the first one, a row that no window reaches.
        self._last_bad_G = np.arange(len(plan.groups)) * GROUP_KEY - plan.window

    def add(self, keys_R: Ints, is_bad_R: Mask, labels_R: Ints) -> None:
        """Take in the next rows of each group."""
        window, last_bad_G = self._plan.window, self._last_bad_G
        groups_R = keys_R // GROUP_KEY
        if not is_bad_R.any() and (last_bad_G[groups_R] <= keys_R - window).all():
            return
        order_R = np.argsort(keys_R)
        keys_N, groups_N = keys_R[order_R], groups_R[order_R]
        bad_N = np.where(is_bad_R[order_R], keys_N, last_bad_G[groups_N])
        bad_N = np.maximum.accumulate(bad_N)  # keys rise from group to group, so none reaches into the next
        last_bad_G[groups_N] = bad_N
        is_hit_N = bad_N > keys_N - window
        hit_N, labels_N = keys_N[is_hit_N], labels_R[order_R][is_hit_N]
        for name, windows in self._parts.items():
            is_end_N = windows.next_end(hit_N) == hit_N
            self._dropped[name].append(hit_N[is_end_N])
            self._labels[name].append(labels_N[is_end_N])

    def plan(self) -> SplitPlan:
        """Return the plan without them, each counted as non_finite; start and end times stay as planned."""
        found = self._plan
        parts = {name: self._without_bad(name, part) for name, part in found.parts.items()}
        return replace(found, train=parts["train"], val=parts["val"], test=parts.get("test"))

    def _without_bad(self, name: str, part: PartPlan) -> PartPlan:
        bad = np.sort(np.concatenate([*self._dropped[name], np.empty(0, np.int64)]))
        labels = np.concatenate([*self._labels[name], np.empty(0, np.int64)])
        inside = labels[(labels >= 0) & (labels < self._plan.num_classes)]
        counts = np.array(part.class_counts, np.int64) - np.bincount(inside, minlength=len(part.class_counts))
        if part.windows and len(bad) == part.windows:
            raise EmptySplit(
                f"{name} split has 0 windows: all of its {part.windows:,} windows hold a NaN or an infinity.",
                'Repair the rows, or set data.non_finite to "zero".',
                pointer="/data/non_finite",
            )
        return replace(
            part,
            windows=part.windows - len(bad),
            class_counts=tuple(counts.tolist()),
            dropped={**part.dropped, "non_finite": len(bad)},
            # As unique as planned, on average: they are a little more so.
            independent=part.independent and part.independent * (1 - len(bad) / part.windows),
            runs=tuple(_remaining(part.runs, bad, self._plan.stride)),
        )


def _remaining(runs: tuple[WindowRun, ...], bad: Ints, stride: int) -> Iterator[WindowRun]:
    """Yield the runs without the windows that end at these keys, which are sorted."""
    for run in runs:
        key = run.group * GROUP_KEY + run.first
        low, high = np.searchsorted(bad, [key, key + (run.count - 1) * stride + 1])
        place = 0  # in the run
        for gap in ((bad[low:high] - key) // stride).tolist():
            if gap > place:
                yield WindowRun(run.group, run.first + place * stride, gap - place)
            place = gap + 1
        if place < run.count:
            yield WindowRun(run.group, run.first + place * stride, run.count - place)
