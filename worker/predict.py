"""Classify every window of a dataset with a best checkpoint, and score it: `python -m worker.predict`.

Rows are read in content order, decoded as in training, and encoded once each. Labels are not needed; where
there are some, the windows that have one are scored as validation does it.

Shapes: R rows of a piece, B windows, T rows in a window, D embedding, F... the shape of one row, K classes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter
from torch import Tensor

from app.datasets.catalog import find_files
from app.datasets.errors import LabelOutOfRange, NoFiles, NoRows, NotChronological, SchemaMismatch
from app.datasets.features import Features, listed, resolve_features
from app.datasets.footers import Footer, Metadata, check_same_schema, read_footer
from app.datasets.order import Ordered, order_by_time
from app.datasets.parquet import RowBatch, read_columns
from app.datasets.times import as_ns, floor_ns, raw_times
from app.errors import ServiceError, shown, told
from app.jobs.config import DataConfig, LossConfig
from app.jobs.scores import scores
from worker.engine.loss import build_loss
from worker.engine.resolve import resolve_class_weights
from worker.models import CorruptCheckpoint, SequenceModel, load
from worker.models.about import About
from worker.models.base import gather_windows
from worker.stream.decode import Origin, decode_features
from worker.stream.errors import NonFinite

PIECE_ROWS, PIECE_BYTES = 8192, 16 * 2**20  # rows decoded at once, at most
ENCODE_ROWS, HEAD_WINDOWS = 1024, 256  # that go through the model at once

LOSS_CONFIG: TypeAdapter[LossConfig] = TypeAdapter(LossConfig)
# Of what is known of a checkpoint.
_NEEDED = ("classes", "config.data", "config.loss", "resolved.features", "resolved.shape")
_FROM_HERE = "The path is read from the current folder: of a dataset below the data root, data/btc, not btc."
_NO_LABEL = "Labels are not needed: leave the column out of the data if it holds something else."

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Predicted:
    """What was written. scores: of the windows that have a label; null when the data have none.

    scores: "windows" (how many have a label), "loss" (the job's own, by its class weights; null when these
    are all 0 here), "confusion" (rows are labels), and those of `app.jobs.scores`: accuracy, macro_f1,
    balanced_accuracy, mcc, per_class.
    """

    path: Path
    windows: int
    scores: dict[str, Any] | None
    trained_on: int  # windows that end before the model's validation began: it may know them by heart


def predict(
    checkpoint: Path | str,
    data: Path | str,
    target: Path | str,
    *,
    device: str = "cpu",
    allowed_prefixes: Sequence[str] = (),
    piece_rows: int = PIECE_ROWS,
) -> Predicted:
    """Write the class and the probabilities of every window that ends in `data`, and score them by labels.

    checkpoint: as `worker.models.load` takes it. data: a file, folder or glob. Window, stride, gap and group
    are those of training; a row of `target` is a window's last row: its time, its group, its label (when the
    data have labels), `prediction` (0..K-1), `class` (its name), and `prob_<class>` for each class, float32.
    A label that is null is not scored. Rows are in content order. The file appears whole or not at all.
    Raises DataError for data that do not fit the model, and what `load` raises.
    """
    target = Path(target)
    model, about = load(checkpoint, allowed_prefixes=allowed_prefixes)
    if missing := [needed for needed in _NEEDED if not _has(about, needed)]:
        raise CorruptCheckpoint(f"What is known of {checkpoint} lacks {', '.join(missing)}.")
    model = model.to(device)
    source = open_source(str(data), about, besides=target)
    scoring = Scoring(about) if source.label is not None else None
    draft = target.with_name(f".{target.name}.tmp")
    # Null in a checkpoint of before, without its sidecar.
    val_from_ns = (about["resolved"].get("cuts_ns") or [None])[0]
    num_windows = num_trained_on = 0
    try:
        with pq.ParquetWriter(draft, source.schema(about)) as writer:
            for table, ends_ns in _predictions(model, source, about, device, piece_rows, scoring):
                writer.write_table(table)
                num_windows += table.num_rows
                if val_from_ns is not None:
                    num_trained_on += int((ends_ns < val_from_ns).sum())
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return Predicted(target, num_windows, scoring.scores() if scoring else None, num_trained_on)


def _has(about: Any, dotted: str) -> bool:
    name, _, rest = dotted.partition(".")
    return name in about and (not rest or _has(about[name], rest))


class Scoring:
    """Sums over the windows that have a label: the job's loss in float64, and the confusion counts."""

    def __init__(self, about: About) -> None:
        self.num_classes = len(about["classes"])
        self._classes = about["classes"]
        loss = LOSS_CONFIG.validate_json(json.dumps(about["config"]["loss"]))
        asked = resolve_class_weights(loss.class_weights, self.num_classes)
        self._loss = build_loss(
            loss,
            about["resolved"].get("class_weights", asked),
            num_classes=self.num_classes,
            dtype=torch.float64,
            device=torch.device("cpu"),
        )
        self._loss_sum = 0.0
        self._confusion_KK = np.zeros((self.num_classes, self.num_classes), np.int64)

    def add(self, logits_BK: Tensor, labels_B: Ints) -> None:
        """Count windows in; those labelled -1 have none."""
        has_label_B = torch.from_numpy(labels_B >= 0)
        logits_BK, labels = logits_BK[has_label_B], torch.from_numpy(labels_B)[has_label_B]
        self._loss_sum += float(self._loss.per_sample(logits_BK, labels).sum())
        np.add.at(self._confusion_KK, (labels.numpy(), logits_BK.argmax(-1).numpy()), 1)

    def scores(self) -> dict[str, Any] | None:
        """Score what was counted; null when no window had a label."""
        confusion: list[list[int]] = self._confusion_KK.tolist()
        support = [sum(row) for row in confusion]
        if not sum(support):
            return None
        loss = self._loss.mean(self._loss_sum, support)
        return {
            "windows": sum(support),
            "loss": loss if math.isfinite(loss) else None,
            **scores(confusion, self._classes),
            "confusion": confusion,
        }


@dataclass(frozen=True, slots=True)
class Source:
    """Files in content order, and where in their rows the features are."""

    ordered: Ordered
    config: DataConfig
    features: Features
    label: str | None  # its column, when the data have one

    @property
    def kept(self) -> list[str]:
        """The columns of a window's last row that stand beside its prediction: time, group, label."""
        found = (self.config.timestamp, self.config.group, self.label)
        return [column for column in found if column is not None]

    @property
    def columns(self) -> list[str]:
        """The columns to read."""
        return list(dict.fromkeys([*self.features.columns, *self.kept]))

    def pieces(self, piece_rows: int) -> Iterator[tuple[Footer, RowBatch]]:
        """Read the files one after another, a piece at a time."""
        row_bytes = prod(self.features.shape) * max(4, np.dtype(self.features.dtype).itemsize)
        batch_rows = max(1, min(piece_rows, PIECE_BYTES // row_bytes))
        for footer in self.ordered.footers:
            for piece in read_columns(footer.path, footer.name, self.columns, batch_rows=batch_rows):
                yield footer, piece

    def times_ns(self, footer: Footer, piece: RowBatch) -> Ints:
        """Return the rows' times, [R]."""
        column = self.config.timestamp
        raw_R = raw_times(piece.columns[column], column, footer.name, piece.first_row)
        is_detected = self.ordered.is_detected
        return as_ns(raw_R, self.ordered.unit, column, footer.name, piece.first_row, is_detected=is_detected)

    def labels(self, piece: RowBatch, origin: Origin, num_classes: int) -> Ints:
        """Return the rows' classes, [R]; -1 where there is none. Raises LabelOutOfRange."""
        assert self.label is not None
        column = _decoded(piece.columns[self.label])
        known_R = ~np.asarray(column.is_null())
        values_R = np.asarray(column.fill_null(0))
        wrong_R = known_R & ((values_R < 0) | (values_R >= num_classes))
        if wrong_R.any():
            row = int(np.argmax(wrong_R))
            raise LabelOutOfRange(
                f"{origin.at(row)}: label {values_R[row]} is not one of the model's classes,"
                f" 0..{num_classes - 1}.",
                _NO_LABEL,
            )
        return np.where(known_R, values_R, -1).astype(np.int64)

    def schema(self, about: About) -> pa.Schema:
        """Say what a row of the predictions holds; the schema key `saimp` says of which model."""
        types = self.ordered.footers[0].types
        taken = set(self.kept)
        ours = [("prediction", pa.int32()), ("class", pa.string())]
        ours += [(f"prob_{name}", pa.float32()) for name in about["classes"]]
        fields = [pa.field(column, types[column]) for column in self.kept]
        for name, kind in ours:
            while name in taken:
                name += "_"
            taken.add(name)
            fields.append(pa.field(name, kind))
        model = {key: about.get(key) for key in ("job_id", "sha256", "epoch", "classes")}
        return pa.schema(fields, metadata={"saimp": json.dumps(model)})


def open_source(path: str, about: About, *, besides: Path) -> Source:
    """Find the files and check that they hold what the model was trained on; `besides` is never data."""
    folder, name = split_path(path)
    if not folder.is_dir():
        raise NoFiles(f"There is no folder {shown(str(folder))!r}.", _FROM_HERE)
    try:
        found = [f for f in find_files(folder, name) if f.path.resolve() != besides.resolve()]
    except NoFiles as error:
        # The folder is the user's here, not the data root.
        raise NoFiles(error.message.replace(" below the data root", ""), _FROM_HERE) from error
    footers = [footer for footer in (read_footer(f.path, f.name) for f in found) if footer.rows]
    if not footers:
        raise NoRows(f"{shown(path)!r} has no rows.", "Give a path with data.")
    resolved = about["resolved"]
    columns = list(resolved["features"])
    config = DataConfig.model_validate_json(
        json.dumps(
            {
                **about["config"]["data"],
                "features": columns[0] if len(columns) == 1 else columns,
                "shape": list(resolved["shape"]),
            }
        )
    )
    check_same_schema(footers, config.timestamp)
    types = footers[0].types
    for column in (config.timestamp, config.group):
        if column is not None and column not in types:
            raise SchemaMismatch(
                f"There is no column {shown(column)!r}; found {listed(types)}.",
                "The data need the columns the model was trained with, but for the label.",
            )
    metadata = footers[0].metadata or Metadata()
    label = config.label if config.label in types and not pa.types.is_null(types[config.label]) else None
    if label is not None and not pa.types.is_integer(types[label]):
        raise LabelOutOfRange(
            f"The label column {shown(label)!r} is {types[label]}, not an integer.", _NO_LABEL
        )
    roles = frozenset(c for c in (config.timestamp, config.label, config.group) if c is not None)
    features = resolve_features(types, config, metadata, roles, lambda _: prod(resolved["shape"]))
    return Source(
        order_by_time(footers, config.timestamp, config.group is not None, group=config.group),
        config,
        features,
        label,
    )


def split_path(path: str) -> tuple[Path, str]:
    """Cut a path into the folder it begins in and what to find there: a name, a glob, or all."""
    given = Path(path)
    if given.is_dir():
        return given, "."
    if given.exists():
        return given.parent, given.name
    parts = given.parts
    first = next((n for n, part in enumerate(parts) if any(c in part for c in "*?[")), len(parts) - 1)
    return Path(*parts[:first]), "/".join(parts[first:])


@dataclass(slots=True)
class _Lane:
    """Where one group stands: its rows so far, and what later windows need of them."""

    rows: int = 0
    last_ns: int | None = None
    solid_from: int = 0  # first row since the last gap
    tail_TD: Tensor | None = None  # the last T - 1 rows, embedded


def _predictions(
    model: SequenceModel,
    source: Source,
    about: About,
    device: str,
    piece_rows: int,
    scoring: Scoring | None,
) -> Iterator[tuple[pa.Table, Ints]]:
    """Classify piece by piece: the rows to write, and the times of the windows' last rows."""
    lanes: dict[Any, _Lane] = {}
    schema = source.schema(about)
    classes = pa.array(about["classes"], pa.string())
    for footer, piece in source.pieces(piece_rows):
        places_B, logits_BK = _classify_piece(model, source, footer, piece, lanes, device)
        if scoring is not None:
            labels_R = source.labels(piece, Origin(footer.name, piece.first_row), scoring.num_classes)
            scoring.add(logits_BK, labels_R[places_B])
        order_B = np.argsort(places_B, kind="stable")
        logits_BK = logits_BK[torch.from_numpy(order_B)]
        probabilities_KB = logits_BK.softmax(-1).float().T.contiguous().numpy()
        predictions_B = pa.array(logits_BK.argmax(-1).numpy(), pa.int32())
        kept = [_decoded(piece.columns[name]).take(pa.array(places_B[order_B])) for name in source.kept]
        table = pa.Table.from_arrays(
            [*kept, predictions_B, classes.take(predictions_B), *map(pa.array, probabilities_KB)],
            schema=schema,
        )
        yield table, source.times_ns(footer, piece)[places_B]


def _classify_piece(
    model: SequenceModel,
    source: Source,
    footer: Footer,
    piece: RowBatch,
    lanes: dict[Any, _Lane],
    device: str,
) -> tuple[Ints, Tensor]:
    """Classify the windows that end in a piece: the places of their last rows [B], logits [B, K], float64."""
    origin = Origin(footer.name, piece.first_row)
    table = pa.table({name: piece.columns[name] for name in source.features.columns})
    rows_RF, is_whole_R = _finite(decode_features(table, source.features, origin), source, origin)
    times_R = source.times_ns(footer, piece)
    with torch.inference_mode():
        embedded_RD = torch.cat(
            [model.encode(part_RF.to(device)) for part_RF in torch.split(rows_RF, ENCODE_ROWS)]
        )
        found = [
            _classify_lane(
                model,
                source,
                lanes.setdefault(group, _Lane()),
                origin,
                places_N,
                times_R,
                is_whole_R,
                embedded_RD,
            )
            for group, places_N in _by_group(source, piece)
        ]
    return np.concatenate([places for places, _ in found]), torch.cat([logits for _, logits in found])


def _classify_lane(
    model: SequenceModel,
    source: Source,
    lane: _Lane,
    origin: Origin,
    places_N: Ints,
    times_R: Ints,
    is_whole_R: Mask,
    embedded_RD: Tensor,
) -> tuple[Ints, Tensor]:
    """Go on with one group: its rows of a piece are at `places_N`."""
    window, stride = model.window, source.config.stride
    first = lane.rows  # in the group, of the first row here
    starts_from = _advance(lane, source, origin, places_N, times_R, is_whole_R)
    ends_N = np.arange(first, lane.rows)
    starts_N = ends_N - (window - 1)
    used_N = (starts_N >= starts_from) & (starts_N >= 0) & (starts_N % stride == 0)
    own_ND = embedded_RD[torch.from_numpy(places_N).to(embedded_RD.device)]
    held_ND = own_ND if lane.tail_TD is None else torch.cat([lane.tail_TD, own_ND])
    base = lane.rows - len(held_ND)  # in the group, of the first row held
    lane.tail_TD = held_ND[max(0, len(held_ND) - window + 1) :]
    starts_B = torch.from_numpy(starts_N[used_N] - base)
    logits = [
        model.head(gather_windows(held_ND, part_B, window, is_dense=False)).double().cpu()
        for part_B in torch.split(starts_B, HEAD_WINDOWS)
        if len(part_B)
    ]
    empty_BK = torch.empty(0, model.num_classes, dtype=torch.float64)
    return places_N[used_N], torch.cat([empty_BK, *logits])


def _advance(
    lane: _Lane, source: Source, origin: Origin, places_N: Ints, times_R: Ints, is_whole_R: Mask
) -> Ints:
    """Count rows in; for each, the first row of its group that a window ending there may hold, [N].

    Raises NotChronological when time goes back.
    """
    times_N = times_R[places_N]
    steps_N = np.diff(times_N, prepend=times_N[0] if lane.last_ns is None else lane.last_ns)
    if (steps_N < 0).any():
        where = origin.at(int(places_N[int(np.argmax(steps_N < 0))]))
        raise NotChronological(
            f"{where}: time goes back.", "Sort the rows by time (inside each group); files may not overlap."
        )
    numbers_N = np.arange(lane.rows, lane.rows + len(places_N))
    solid_N = np.full(len(places_N), lane.solid_from)
    if source.config.max_gap_s is not None:
        solid_N = np.where(steps_N > floor_ns(source.config.max_gap_s), numbers_N, solid_N)
    # A row that is not whole is in no window.
    solid_N = np.maximum.accumulate(np.where(is_whole_R[places_N], solid_N, numbers_N + 1))
    lane.rows += len(places_N)
    lane.last_ns = int(times_N[-1])
    lane.solid_from = int(solid_N[-1])
    return solid_N


def _by_group(source: Source, piece: RowBatch) -> Iterator[tuple[Any, Ints]]:
    """Yield the groups of a piece, each with the places of its rows."""
    if source.config.group is None:
        yield None, np.arange(len(piece.columns[source.config.timestamp]))
        return
    encoded = _decoded(piece.columns[source.config.group]).dictionary_encode()
    codes_R = np.asarray(encoded.indices.fill_null(-1))
    for code in np.unique(codes_R):
        group = None if code < 0 else encoded.dictionary[int(code)].as_py()
        yield group, np.flatnonzero(codes_R == code)


def _finite(rows_RF: Tensor, source: Source, origin: Origin) -> tuple[Tensor, Mask]:
    """Deal with numbers that are not finite as training did: the rows, and which of them may be used [R]."""
    is_finite_RE = rows_RF.flatten(1).isfinite()
    is_whole_R = is_finite_RE.all(dim=1).numpy()
    if is_whole_R.all():
        return rows_RF, is_whole_R
    policy: str = source.config.non_finite
    if policy == "error":
        where = origin.at(int(np.argmin(is_whole_R)))
        raise NonFinite(f"{where}: a feature is not finite.", "Clean the features.")
    rows_RF = rows_RF.masked_fill(~is_finite_RE.view(rows_RF.shape), 0.0)
    return rows_RF, is_whole_R if policy == "skip" else np.ones_like(is_whole_R)


def _decoded(column: Any) -> Any:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `python -m worker.predict`: print what was written and its scores, or what went wrong."""
    parser = argparse.ArgumentParser(prog="python -m worker.predict", description=main.__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("data", help="file, folder or glob")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allow", action="append", default=[], metavar="PREFIX")
    given = parser.parse_args(arguments)
    try:
        found = predict(
            given.checkpoint, given.data, given.out, device=given.device, allowed_prefixes=given.allow
        )
    except (ServiceError, CorruptCheckpoint, OSError) as error:
        print(f"error: {told(error)}", file=sys.stderr)
        return 1
    print(json.dumps({**asdict(found), "path": str(found.path)}))
    if found.scores is not None:
        print(_score_line(found.windows, found.scores), file=sys.stderr)
    if found.trained_on:
        print(
            f"{found.trained_on} of the {found.windows} windows end before the model's validation began:"
            " what it was trained on says little of new data.",
            file=sys.stderr,
        )
    return 0


def _score_line(num_windows: int, of: dict[str, Any]) -> str:
    """Say how good the predictions are, in the words of the training log."""
    which = "all" if of["windows"] == num_windows else f"{of['windows']} of"
    loss = "none" if of["loss"] is None else f"{of['loss']:.4f}"
    return (
        f"Loss: {loss} | Acc: {of['accuracy']:.2%} | macro-F1: {of['macro_f1']:.2f}"
        f" | MCC: {of['mcc']:.2f} | {which} {num_windows} windows have a label"
    )


if __name__ == "__main__":
    sys.exit(main())
