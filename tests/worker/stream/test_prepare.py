"""One pass before training: scales from training rows alone, and windows without rows that are not finite."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from app.datasets.errors import EmptySplit
from app.datasets.schema import open_dataset
from app.datasets.split import SplitPlan, plan_split
from app.jobs.config import DataConfig
from tests.worker.stream.factory import arrow_features, seen, write
from worker.models.base import SequenceModel
from worker.models.normalizer import Normalized, Scaling
from worker.stream.errors import NonFinite
from worker.stream.prepare import NonFiniteRule, Normalize, survey
from worker.stream.statistics import Moments, Quantiles
from worker.stream.stream import Stream

torch.set_num_threads(1)

ROWS, CUT, WINDOW = 300, 240, 4


def features() -> np.ndarray[Any, np.dtype[np.float32]]:
    rng = np.random.default_rng(0)
    return (rng.lognormal(size=(ROWS, 6)) * 10.0 ** np.arange(-2, 4) + 5).astype(np.float32)


def dataset_of(
    folder: Path, values_NE: Any, *, groups: int = 0, layout: Any = "binary"
) -> tuple[Any, SplitPlan]:
    folder.mkdir(exist_ok=True)
    columns: dict[str, Any] = {"timestamp": pa.array(np.arange(ROWS) * 1_000_000).cast(pa.timestamp("us"))}
    columns |= arrow_features(values_NE, layout)
    columns["label"] = pa.array(np.arange(ROWS) % 3)
    if groups:
        columns["symbol"] = pa.array([f"g{i % groups}" for i in range(ROWS)])
    table = pa.table(columns)
    write(folder / "a.parquet", table.slice(0, 130), 40)
    write(folder / "b.parquet", table.slice(130), 40)
    named = {"features": [f"f{i}" for i in range(6)]} if layout == "columns" else {}
    data = DataConfig(path=".", shape=[2, 3], window=WINDOW, group="symbol" if groups else None, **named)  # type: ignore[arg-type]
    dataset = open_dataset(folder, data)
    return dataset, plan_split(dataset, data)


def scales(
    folder: Path, values_NE: Any, normalize: Normalize, rule: NonFiniteRule = "error", groups: int = 0
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    found = survey(*dataset_of(folder, values_NE, groups=groups), normalize, rule)
    assert found.center_F is not None
    assert found.scale_F is not None
    assert found.center_F.shape == found.scale_F.shape == (2, 3)
    assert found.center_F.dtype == found.scale_F.dtype == torch.float64
    return found.center_F.flatten().numpy(), found.scale_F.flatten().numpy()


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("normalize", ["standard", "robust"])
def test_scales_are_those_of_the_training_rows(tmp_path: Path, normalize: Any, groups: int) -> None:
    values = features()
    values[:, 2] = 7  # scale 0 becomes 1
    center, scale = scales(tmp_path, values, normalize, groups=groups)
    train = values[:CUT].astype(np.float64)
    if normalize == "standard":
        expected = train.mean(0), train.std(0)
    else:
        low, median, high = np.quantile(train, [0.25, 0.5, 0.75], axis=0)
        expected = median, high - low
    np.testing.assert_allclose(center, expected[0], rtol=1e-12)
    np.testing.assert_allclose(scale, np.where(expected[1] < 1e-9, 1, expected[1]), rtol=1e-9)
    assert scale[2] == 1


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("normalize", ["standard", "robust"])
def test_rows_after_the_first_cut_change_nothing(tmp_path: Path, normalize: Any, groups: int) -> None:
    values, other = features(), features()
    other[CUT:] = 1e6
    before = scales(tmp_path / "a", values, normalize, groups=groups)
    after = scales(tmp_path / "b", other, normalize, groups=groups)
    np.testing.assert_array_equal(before, after)
    other[CUT - 1] = 1e6
    assert (scales(tmp_path / "c", other, normalize, groups=groups)[0] != before[0]).any()


@pytest.mark.parametrize("normalize", ["standard", "robust"])
def test_rows_that_are_not_finite_are_left_out(tmp_path: Path, normalize: Any) -> None:
    values = features()
    whole = np.delete(values[:CUT], [3, 100], axis=0).astype(np.float64)
    values[3, 0], values[100, 5] = np.nan, np.inf
    center, _ = scales(tmp_path, values, normalize)
    expected = whole.mean(0) if normalize == "standard" else np.median(whole, axis=0)
    np.testing.assert_allclose(center, expected, rtol=1e-12)


def test_moments_merge_to_those_of_all_rows() -> None:
    values_RF = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor(
        [0.0, 1e3, 1e6]
    )
    parts = [Moments(3) for _ in range(3)]
    for part, rows_RF in zip(parts, (values_RF[:10], values_RF[10:10], values_RF[10:]), strict=True):
        part.add(rows_RF)
    parts[1].merge(parts[2])
    parts[0].merge(parts[1])
    mean_F, deviation_F = parts[0].location_and_spread()
    torch.testing.assert_close(mean_F, values_RF.double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(deviation_F, values_RF.double().std(0, correction=0), rtol=1e-9, atol=0)


@pytest.mark.parametrize("is_sorted", [False, True])
def test_quantiles_are_within_the_stated_rank_error_merged_or_not(is_sorted: bool) -> None:
    rows = 60_000
    values_RF = torch.randn(rows, 5, generator=torch.Generator().manual_seed(1))
    if is_sorted:
        values_RF = values_RF.sort(dim=0).values
    whole, parts = Quantiles(5, 256), [Quantiles(5, 256) for _ in range(4)]
    whole.add(values_RF)
    for part, rows_RF in zip(parts, values_RF.tensor_split([100, 101, 30_000]), strict=True):
        part.add(rows_RF)
        if part is not parts[0]:
            parts[0].merge(part)
    fractions_Q = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    for sketch in (whole, parts[0]):
        assert sketch.count == rows
        found_QF = sketch.at(fractions_Q)
        ranks_QF = (values_RF[:, None] <= found_QF.float()).double().mean(0)
        error = float((ranks_QF - fractions_Q[:, None]).abs().max())
        assert error <= sketch.rank_error() < 0.04
        assert error < 0.01  # what is typical


def test_nothing_is_read_when_nothing_is_asked(tmp_path: Path) -> None:
    dataset, plan = dataset_of(tmp_path, features())
    for file in dataset.files:
        file.path.unlink()
    found = survey(dataset, plan, "none", "error")
    assert found.plan is plan
    assert (found.center_F, found.scale_F, found.num_bad_rows) == (None, None, None)


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("layout", ["binary", "list", "columns"])
def test_skip_drops_the_windows_that_hold_a_bad_row_and_no_other(
    tmp_path: Path, groups: int, layout: Any
) -> None:
    values = features()
    clean, planned = dataset_of(tmp_path / "clean", values, groups=groups, layout=layout)
    bad_rows = [0, 39, 40, 131, 132, 200, CUT - 1, CUT, 299]
    values[bad_rows, [0, 1, 2, 3, 4, 5, 0, 1, 2]] = [np.nan, np.inf, -np.inf] * 3
    dataset, plan = dataset_of(tmp_path / "bad", values, groups=groups, layout=layout)
    found = survey(dataset, plan, "none", "skip")
    assert found.num_bad_rows == len(bad_rows)
    for name, part in found.plan.parts.items():
        before = planned.parts[name]
        kept = [
            (window, label)
            for window, label in seen(Stream(clean, planned, name).batches(5))
            if not _holds(window, features()[bad_rows])
        ]
        batches = seen(Stream(dataset, found.plan, name, verify_checksums=True).batches(5))
        assert batches == kept
        assert part.windows == len(kept)
        assert part.windows + sum(part.dropped.values()) == before.windows + sum(before.dropped.values())
        assert part.dropped["non_finite"] == before.windows - len(kept) > 0
        assert list(part.class_counts) == np.bincount([label for _, label in kept], minlength=3).tolist()


def _holds(window: bytes, rows: Any) -> bool:
    return any(row.tobytes() in window for row in rows)


def test_skip_says_when_nothing_is_left(tmp_path: Path) -> None:
    values = features()
    values[CUT:] = np.nan
    with pytest.raises(EmptySplit) as caught:
        survey(*dataset_of(tmp_path, values), "none", "skip")
    assert caught.value.pointer == "/data/non_finite"
    assert caught.value.message.startswith("val split has 0 windows")


@pytest.mark.parametrize("groups", [0, 3])
@pytest.mark.parametrize("layout", ["binary", "list", "columns"])
def test_zero_reads_bad_features_as_0_in_every_pass(tmp_path: Path, groups: int, layout: Any) -> None:
    values = features()
    values[[5, 41, 42, 250], [0, 1, 2, 3]] = [np.nan, np.inf, -np.inf, np.nan]
    clean = np.where(np.isfinite(values), values, 0).astype(np.float32)
    dataset, plan = dataset_of(tmp_path / "bad", values, groups=groups, layout=layout)
    found = survey(dataset, plan, "none", "zero")
    assert found.plan.train == replace(plan.train, dropped={**plan.train.dropped, "non_finite": 0})
    assert found.num_bad_rows == 4
    zeroed, planned = dataset_of(tmp_path / "clean", clean, groups=groups, layout=layout)
    for name in plan.parts:
        expected = seen(Stream(zeroed, planned, name).batches(7))
        stream = Stream(dataset, found.plan, name, zero_non_finite=True)
        for _ in range(2):
            assert seen(stream.batches(7)) == expected
    with pytest.raises(NonFinite):
        list(Stream(dataset, plan, "train").batches(7))


class Sum(SequenceModel):
    def encode(self, rows_RF: torch.Tensor) -> torch.Tensor:
        return rows_RF.flatten(1)

    def head(self, embedded_BTD: torch.Tensor) -> torch.Tensor:
        return embedded_BTD.sum(1)


def test_a_normalised_model_carries_its_scaling_in_its_weights() -> None:
    scaling = Scaling(torch.arange(6.0).view(2, 3).double(), torch.full((2, 3), 2.0, dtype=torch.float64))
    inner = Sum(window=4, shape=(2, 3), num_classes=6)
    model = Normalized(inner, scaling).float()
    rows_RF = torch.randn(9, 2, 3)
    expected = inner.forward_rows((rows_RF - scaling.center_F.float()) / 2, torch.arange(6), True)
    assert torch.equal(model.forward_rows(rows_RF, torch.arange(6), True), expected)
    identity = Scaling(torch.zeros(2, 3), torch.ones(2, 3))
    other = Normalized(Sum(window=4, shape=(2, 3), num_classes=6), identity)
    assert torch.equal(other(rows_RF[None, :4]), inner(rows_RF[None, :4]))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.forward_rows(rows_RF, torch.arange(6), True), expected)
    assert not list(model.parameters())
