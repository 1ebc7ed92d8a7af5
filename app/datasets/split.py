"""The chronological split: cuts, window candidates, purge, embargo, gaps. Contract, section 2."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from app.datasets.cuts import Survey, find_cuts
from app.datasets.errors import DataError, EmptySplit, NoClassWeight, WrongClassWeights
from app.datasets.scan import PartTally, Scan
from app.datasets.schema import Dataset
from app.jobs.config import DataConfig, FractionSplit

CLASSES_OF_FOUR = ("Neutro", "Stop", "Long", "SuperLong")
MAX_CLASSES_SHOWN = 12

PartName = Literal["train", "val", "test"]
DropReason = Literal["purged", "embargoed", "gap", "non_finite"]


@dataclass(frozen=True, slots=True)
class WindowRun:
    """Accepted windows on one grid: of `group`, ending at rows first, first + stride, ... (`count` of them).

    Rows are counted inside the group, over all files in content order, from 0.
    """

    group: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class PartPlan:
    """One part of the split. start_ns, end_ns: first and last row times its windows touch.

    independent: labels that its overlapping ones are worth; null when nothing says how far they look ahead.
    """

    rows: int
    windows: int
    start_ns: int | None
    end_ns: int | None
    class_counts: tuple[int, ...]
    dropped: dict[DropReason, int]  # non_finite is not known here
    runs: tuple[WindowRun, ...]  # by group, then by row
    independent: float | None = None


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """Where every window belongs. Its size grows with holes, not with rows."""

    window: int
    stride: int
    groups: tuple[str, ...]  # sorted group values (integers by value) as text; ("",) when ungrouped
    num_classes: int
    classes: tuple[str, ...]
    cuts_ns: tuple[int | None, int | None]  # first row time of val, of test
    train: PartPlan
    val: PartPlan
    test: PartPlan | None
    warnings: tuple[tuple[str, str], ...]
    ahead_ns: tuple[int, int] | None = None  # median and maximum of label_end less the row's time

    @property
    def parts(self) -> dict[PartName, PartPlan]:
        """The parts that exist, in time order."""
        parts: dict[PartName, PartPlan] = {"train": self.train, "val": self.val}
        if self.test is not None:
            parts["test"] = self.test
        return parts


def plan_split(
    dataset: Dataset,
    data: DataConfig,
    *,
    class_weights: Sequence[float] | None = None,
    deadline: float | None = None,
) -> SplitPlan:
    """Cut the rows once, in time, and give every window to a part or to the reason it is dropped.

    Reads timestamp, label, label_end and group only, streamed; memory grows with row groups and holes.
    class_weights: of the loss, one a class; a train or val split without any weight is refused.
    deadline: time.monotonic() after which PreflightTimeout is raised.
    Raises the DataErrors of bad times, labels and groups, and EmptySplit naming the part, its rows and T.
    Source: contract, section 2; Lopez de Prado, Advances in Financial Machine Learning (2018), ch. 7.
    """
    cuts_ns = find_cuts(Survey(dataset, deadline), dataset.rows, data.split)
    scan = Scan(dataset, data, cuts_ns if _has_test(data) else cuts_ns[:1])
    scan.run(deadline)
    plan = assemble_plan(dataset, data, scan, scan.parts, cuts_ns, class_weights)
    faults = plan_faults(plan, class_weights)
    if faults:
        raise DataError.of(faults)
    return plan


def assemble_plan(
    dataset: Dataset,
    data: DataConfig,
    scan: Scan,
    tallies: Sequence[PartTally],
    cuts_ns: tuple[int | None, int | None],
    class_weights: Sequence[float] | None,
) -> SplitPlan:
    """Make a plan of a finished scan; tallies: of train, val and, where there is one, test."""
    classes = _class_names(dataset, scan.max_label)
    # Groups were numbered as they appeared; the plan numbers them by value.
    ranked = sorted(range(len(scan.groups)), key=lambda lane: scan.groups[lane])
    parts = [_part(tally, ranked, len(classes)) for tally in tallies]
    return SplitPlan(
        window=data.window,
        stride=data.stride,
        groups=tuple(str(scan.groups[lane]) for lane in ranked),
        num_classes=len(classes),
        classes=classes,
        cuts_ns=cuts_ns,
        train=parts[0],
        val=parts[1],
        test=parts[2] if len(parts) > 2 else None,
        warnings=(
            *_train_warnings(parts[0], classes, class_weights),
            *(
                warning
                for name, part in zip(("validation", "test"), parts[1:], strict=False)
                for warning in _scored_warnings(name, part, parts[0], classes)
            ),
            *_label_warnings(dataset, scan),
        ),
        ahead_ns=(scan.ahead.median_ns, scan.ahead.longest_ns) if dataset.label_end else None,
    )


def plan_faults(plan: SplitPlan, class_weights: Sequence[float] | None) -> list[DataError]:
    """Say which parts cannot be used: without windows, or without class weight."""
    return [*_empty_parts(plan), *_weight_faults(plan, class_weights)]


def _has_test(data: DataConfig) -> bool:
    split = data.split
    return split.test > 0 if isinstance(split, FractionSplit) else split.test_from is not None


def _class_names(dataset: Dataset, max_label: int) -> tuple[str, ...]:
    if dataset.classes is not None:
        return dataset.classes
    num_classes = max(max_label + 1, 2)
    return CLASSES_OF_FOUR if num_classes == 4 else tuple(str(k) for k in range(num_classes))


def _part(tally: PartTally, ranked: Sequence[int], num_classes: int) -> PartPlan:
    return PartPlan(
        rows=tally.rows,
        windows=tally.windows,
        start_ns=tally.start_ns,
        end_ns=tally.end_ns,
        class_counts=tuple(int(count) for count in tally.class_counts[:num_classes]),
        dropped={"purged": tally.purged, "embargoed": tally.embargoed, "gap": tally.gap},
        runs=tuple(
            WindowRun(group, first, count)
            for group, lane in enumerate(ranked)
            for first, count in tally.runs.get(lane, [])
        ),
        independent=sum(group.worth for group in tally.labels.values()) if tally.labels else None,
    )


def _train_warnings(
    train: PartPlan, classes: Sequence[str], weights: Sequence[float] | None
) -> Iterator[tuple[str, str]]:
    seen = [k for k, count in enumerate(train.class_counts) if count]
    if len(seen) == 1:
        only = f"{seen[0]} ({classes[seen[0]]})"
        yield "single_class", f"Every train window is of class {only}: there is nothing to tell apart."
    for k, name in enumerate(classes):
        if k not in seen and len(seen) > 1:
            effect = f", so its weight {weights[k]:g} has no effect" if weights and k < len(weights) else ""
            yield "class_missing_from_train", f"No train window is of class {k} ({name}){effect}."


def _scored_warnings(
    name: str, part: PartPlan, train: PartPlan, classes: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Warn of what the scores of validation or test cannot show."""
    trained, seen = ([k for k, count in enumerate(p.class_counts) if count] for p in (train, part))
    if len(seen) == 1 and seen != trained:  # else there is one class in all, which is said already
        yield (
            f"single_class_{name}",
            f"Every {name} window is of class {seen[0]} ({classes[seen[0]]}): its scores cannot tell a model"
            " that learned from one that always says so. Move the cut.",
        )
    missing = [k for k in trained if k not in seen]
    if seen and missing:
        listed = ", ".join(f"{k} ({classes[k]})" for k in missing[:MAX_CLASSES_SHOWN])
        more = f" and {len(missing) - MAX_CLASSES_SHOWN} more" if len(missing) > MAX_CLASSES_SHOWN else ""
        yield (
            f"class_missing_from_{name}",
            f"Train has windows of class {listed}{more}, {name} has none: its scores say nothing of"
            f" {'it' if len(missing) == 1 else 'them'}. Move the cut.",
        )


def _label_warnings(dataset: Dataset, scan: Scan) -> Iterator[tuple[str, str]]:
    labels = [label for label, count in scan.label_counts.items() if count]
    if dataset.classes is None and len(labels) > 1 and min(labels) == 1:
        largest = max(labels)
        weights = (
            "they would get the default names and class weights of four classes"
            if largest + 1 == len(CLASSES_OF_FOUR)
            else "the default class weights, which are those of four classes, do not apply"
        )
        yield (
            "labels_start_at_one",
            f"The labels seem to start at 1: they are 1..{largest}, so class 0 would never be seen, there"
            f" would be {largest + 1} classes, and {weights}. Store label - 1, or name all {largest + 1}"
            " classes in data.classes if class 0 is meant.",
        )
    if scan.num_early_label_ends:
        yield (
            "label_end_before_row",
            f"{scan.num_early_label_ends:,} rows have a label_end before their own time; check its unit and"
            " time zone.",
        )


def _empty_parts(plan: SplitPlan) -> Iterator[DataError]:
    """Say of each part without a window why: too few rows, or what dropped its candidates."""
    for name, part in plan.parts.items():
        if part.windows:
            continue
        rows = (
            f"{name} split has 0 windows: {part.rows} rows {'before' if name == 'train' else 'after'} the cut"
        )
        advice = {"train": "raise split.train", "val": "split.train", "test": "split.train or split.val"}[
            name
        ]
        if part.rows < plan.window:
            yield EmptySplit(f"{rows}, T={plan.window} needs {plan.window}. Lower window or {advice}.")
        elif not any(part.dropped.values()):
            where = " in one group" if len(plan.groups) > 1 else ""
            yield EmptySplit(
                f"{rows}, no window of T={plan.window} ends there{where} on the grid of stride {plan.stride}."
                f" Lower window, stride or {advice}."
            )
        else:
            counts = ", ".join(f"{count} {reason}" for reason, count in part.dropped.items() if count)
            yield EmptySplit(
                f"{rows}, but every window of T={plan.window} is dropped: {counts}."
                f" Lower window, data.horizon_s or data.embargo_s, raise data.max_gap_s, or move the cut."
            )


def _weight_faults(plan: SplitPlan, weights: Sequence[float] | None) -> Iterator[DataError]:
    if weights is None:
        return
    if len(weights) != plan.num_classes:
        yield WrongClassWeights(
            f"loss.class_weights has {len(weights)} entries, the data have {plan.num_classes} classes.",
            f"Give {plan.num_classes} weights, or null.",
        )
        return
    for name, part in plan.parts.items():
        total = sum(weight * count for weight, count in zip(weights, part.class_counts, strict=True))
        if part.windows and total <= 0 and name != "test":
            yield NoClassWeight(
                f"The {name} split's total class weight is 0: its {part.windows} windows are all of classes"
                " with weight 0, so its loss is undefined.",
                "Raise a weight in loss.class_weights, or move the cut.",
            )
