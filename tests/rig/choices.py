"""What a user can choose that changes a checkpoint, or what is done with it: the cells of the use matrix.

Found in the config itself: a new model, loss, option or export format is tried without a word here, and a new
field of a job that is neither tried nor excused fails a test.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, fields
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel

from app.jobs.config import (
    CustomConfig,
    DataConfig,
    JobRequest,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
)
from worker.export import Format

Body = dict[str, Any]
Choice = tuple[int, str]  # the number of a dimension, and a name in it
Pair = tuple[Choice, Choice]
CUSTOM = "tests.worker"  # where the custom models are
_SMALL = {"d_model": 8, "hidden": 8, "channels": 4, "heads": 2, "layers": 1}


def members(union: Any) -> list[type[BaseModel]]:
    """List the classes of one of the config's unions."""
    return list(get_args(get_args(union)[0]))


def name_of(config: type[BaseModel]) -> str:
    return str(config.model_fields["name"].default)


MODELS: dict[str, Body] = {
    name_of(config): {
        "name": name_of(config),
        **{field: size for field, size in _SMALL.items() if field in config.model_fields},
    }
    for config in members(ModelConfig)
    if config is not CustomConfig
} | {
    f"custom-{target}": {"name": "custom", "target": f"tests.worker.models.custom_nets:{target}"}
    for target in ("Windows", "Rows", "Precise")
}
NORMALIZE: list[str] = list(get_args(DataConfig.model_fields["normalize"].annotation))
# How the features of a row are stored, as `tests.rig.use.write_data` does it; by what the service calls it.
LAYOUTS = {"list": "list", "matrix": "list", "binary": "binary", "columns": "columns", "one": "columns"}
LOSSES: dict[str, Body] = {name_of(config): {"name": name_of(config)} for config in members(LossConfig)} | {
    "smoothed": {"name": "cross_entropy", "label_smoothing": 0.1, "class_weights": None}
}
FORMATS: list[str] = list(get_args(Format))


@dataclass(frozen=True, slots=True)
class Option:
    """One thing a user changes. body: merged into the job; classes: K; the rest: what the walk also does."""

    body: Body
    classes: int = 4
    is_grouped: bool = False
    has_parent: bool = False  # init_from
    is_paused: bool = False  # and goes on


OPTIONS: dict[str, Option] = {
    "plain": Option({}),
    "ema": Option({"training": {"ema_decay": 0.5}}),
    "activation_checkpointing": Option({"training": {"activation_checkpointing": True}}),
    "init_from": Option({}, has_parent=True),
    "group": Option({"data": {"group": "symbol"}}, is_grouped=True),
    "2 classes": Option({}, classes=2),
    "7 classes": Option({}, classes=7),
    "paused": Option({}, is_paused=True),
}

# Values for fields whose type does not name some.
EXAMPLES: dict[str, Any] = {
    "data.stride": 3,
    "data.max_gap_s": 5.0,
    "data.horizon_s": 2.0,
    "data.shuffle_buffer": 16,
    "data.shuffle_run": 4,
    "training.batch_size": "auto",
    "training.accumulation_steps": 2,
    "training.effective_batch": 10,
    "training.clip_grad_norm": 0.5,
    "training.seed": 7,
    "training.eval_batch_size": 5,
    "training.log_every": 1,
    "oom.min_batch_size": 2,
    "early_stopping.patience": 1,
    "early_stopping.min_delta": 0.01,
    "checkpoint.every_s": 0,
    "checkpoint.keep_last": 1,
}
# Each with the reason why no cell has it.
EXCUSED: dict[str, str] = {
    "data.path": "every cell has one",
    "data.timestamp": "every cell has one",
    "data.label": "every cell has one",
    "data.window": "every cell has one",
    "data.normalize": "a dimension of its own",
    "data.features": "the layouts",
    "data.shape": "the layouts",
    "data.group": "an option",
    "data.classes": "an option",
    "data.split": "every cell has one, by time",
    "data.label_end": "chooses windows, and those of a file alone are others",
    "data.embargo_s": "chooses windows, and those of a file alone are others",
    "training.epochs": "every cell has some",
    "training.threads": "every cell has one",
    "training.ema_decay": "an option",
    "training.activation_checkpointing": "an option",
    "training.compile": "needs a compiler and minutes; tests/worker/engine/test_passes.py",
    "limits.max_runtime_s": "ends a job; tests/acceptance/test_worker.py",
    "oom.recover": "changes nothing while memory suffices",
    "device": "tests/gpu",
    "init_from": "an option",
    "name": "a label",
    "tags": "a label",
    "metadata": "a label",
    "priority": "a label",
    "depends_on": "a label",
    "not_before": "a label",
    "max_attempts": "a label",
}
# Sections whose members are settings as they come.
_UNIONS = {"optimizer": OptimizerConfig, "schedule": ScheduleConfig}
_NOT_HERE = {"adamw_8bit": "needs a GPU"}


def leaves(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk the fields of a job: dotted name and annotation; of unions the members are another matter."""
    for name, field in section.model_fields.items():
        if prefix == "" and name in ("model", "loss", *_UNIONS):
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from leaves(annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


def _named_values(annotation: Any) -> list[Any]:
    """List the values a type names itself: of a choice all, of a switch both."""
    if annotation is bool:
        return [False, True]
    return list(get_args(annotation)) if get_origin(annotation) is Literal else []


def _default(dotted: str) -> Any:
    value: Any = JobRequest(data=DataConfig(path="x"))
    for name in dotted.split("."):
        value = getattr(value, name)
    return value


def _nested(dotted: str, value: Any) -> Body:
    *sections, name = dotted.split(".")
    body = {name: value}
    for section in reversed(sections):
        body = {section: body}
    return body


def settings() -> dict[str, Body]:
    """Find the values of fields that change the numbers of a checkpoint but not what it is made of."""
    found: dict[str, Body] = {"": {}}
    for dotted, annotation in leaves(JobRequest):
        if dotted in EXCUSED:
            continue
        for value in [EXAMPLES[dotted]] if dotted in EXAMPLES else _named_values(annotation):
            if value != _default(dotted):
                found[f"{dotted}={value}"] = _nested(dotted, value)
    for union, annotation in _UNIONS.items():
        for config in members(annotation):
            if name_of(config) not in _NOT_HERE:
                found[f"{union}={name_of(config)}"] = {union: {"name": name_of(config)}}
    return found


def unplaced() -> list[str]:
    """List the fields of a job that no cell tries and no reason excuses, and what is written here in vain."""
    known = dict(leaves(JobRequest))
    tried = {dotted for dotted, annotation in known.items() if _named_values(annotation)} | EXAMPLES.keys()
    return sorted((known.keys() - tried - EXCUSED.keys()) | ((tried | EXCUSED.keys()) - known.keys()))


@dataclass(frozen=True, slots=True)
class Cell:
    """One way through: a job and what is made of its result, by the names of the choices."""

    model: str
    normalize: str
    layout: str
    loss: str
    option: str
    format: str  # of the export; "" = none
    setting: str = ""

    @property
    def id(self) -> str:
        return "-".join(str(getattr(self, field.name)) for field in fields(self) if getattr(self, field.name))


_DIMENSIONS: tuple[Sequence[str], ...] = tuple(
    tuple(names) for names in (MODELS, NORMALIZE, LAYOUTS, LOSSES, OPTIONS)
)


def product() -> list[Cell]:
    """List every combination, in an order without any: a part of them is a sample of all.

    Each is exported in one format, so that the losses of a combination have all of them.
    """
    combined = enumerate(itertools.product(*_DIMENSIONS))
    cells = [_cell(*names, FORMATS[number % len(FORMATS)]) for number, names in combined]
    random.Random(0).shuffle(cells)
    return cells


def pairs() -> list[Cell]:
    """List a few cells in which every two choices of two dimensions come together, and every setting once."""
    dimensions = (*_DIMENSIONS, FORMATS)
    wanted = {
        ((a, first), (b, second))
        for (a, ones), (b, others) in itertools.combinations(enumerate(dimensions), 2)
        for first, second in itertools.product(ones, others)
    }
    draw = random.Random(0)
    cells: list[tuple[str, ...]] = []
    while wanted:
        # Of some that hold a pair that is still wanted, the one that holds the most.
        (a, first), (b, second) = min(wanted)
        found = []
        for _ in range(50):
            names = [draw.choice(dimension) for dimension in dimensions]
            names[a], names[b] = first, second
            found.append(tuple(names))
        best = max(found, key=lambda names: len(_pairs_of(names) & wanted))
        wanted -= _pairs_of(best)
        cells.append(best)
    each_setting = itertools.cycle(settings())
    return [_cell(*cell, next(each_setting)) for cell in _sparing(cells)]


def _sparing(cells: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Export only where the pairs of a format need it: that is what takes the time."""
    counts = Counter(pair for cell in cells for pair in _pairs_of(cell))
    spared = []
    for cell in cells:
        of_format = [pair for pair in _pairs_of(cell) if pair[1] == (len(cell) - 1, cell[-1])]
        if all(counts[pair] > 1 for pair in of_format):
            counts.subtract(of_format)
            cell = (*cell[:-1], "")
        spared.append(cell)
    return spared


def _cell(*names: str) -> Cell:
    return Cell(**dict(zip((field.name for field in fields(Cell)), names, strict=False)))


def pairs_of(cell: Cell) -> set[Pair]:
    """List the pairs of choices that come together in a cell."""
    names = astuple(cell)[: len(_DIMENSIONS) + 1]
    return _pairs_of(names if cell.format else names[:-1])


def _pairs_of(names: Sequence[str]) -> set[Pair]:
    return set(itertools.combinations(enumerate(names), 2))
