"""The whole build on real files: what it writes, and that nothing but the trades decides it."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.datasets.build import BuildOptions, Columns, Progress, build_dataset
from app.datasets.build.errors import (
    CannotWrite,
    InvalidBuildOption,
    NoTradeFiles,
    TargetExists,
    TooFewBars,
    UnsortedTrades,
)
from app.datasets.build.trades import Trades
from tests.app.datasets.build import reference
from tests.app.datasets.build.make import (
    TICK,
    content,
    lines,
    part,
    random_trades,
    read_rows,
    write_csv,
    write_parquet,
)

SECOND = 10**9
BY_TRADES = BuildOptions(bar_trades=7, stop=5, target=5, target_high=9, horizon_bars=12, rows_per_group=64)
BY_TIME = BuildOptions(
    bar_trades=None, bar_s=10, stop=5, target=5, target_high=9, horizon_bars=None, horizon_s=60, period="day"
)
OPTIONS = pytest.mark.parametrize("options", [BY_TRADES, BY_TIME], ids=["by trades", "by time"])


@OPTIONS
def test_dataset_is_that_of_plain_loops(options: BuildOptions, tmp_path: Path) -> None:
    trades = random_trades(3000, 1)
    summary = build_dataset(write_csv(tmp_path / "t.csv", trades), tmp_path / "out", options)

    bar_ns, horizon_ns = (None if s is None else int(s * SECOND) for s in (options.bar_s, options.horizon_s))
    known = reference.bars(trades, TICK, bar_trades=options.bar_trades, bar_ns=bar_ns)
    barriers = (options.stop, options.target, options.target_high)
    expected = [
        (bar, *found)
        for i, bar in enumerate(known)
        if (
            found := reference.label(
                known, i, TICK, barriers, horizon_bars=options.horizon_bars, horizon_ns=horizon_ns
            )
        )
    ]
    rows = read_rows(tmp_path / "out")
    assert summary.rows == len(rows) == len(expected) > 100
    assert rows.time_ns.tolist() == [bar.time_ns for bar, _, _ in expected]
    assert rows.label.tolist() == [label for _, label, _ in expected]
    assert rows.label_end_ns.tolist() == [end for _, _, end in expected]
    ladders = np.stack([reference.ladder(bar, TICK) for bar, _, _ in expected])
    np.testing.assert_allclose(rows.features, ladders, rtol=1e-6, atol=1e-7)
    assert list(summary.class_counts.values()) == np.bincount(rows.label, minlength=4).tolist()
    assert (summary.trades, summary.bars, summary.level_size) == (3000, len(known), TICK)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    batch_rows=st.sampled_from([1, 13, 100, 10_000]),
    borders=st.lists(st.integers(1, 599), max_size=4, unique=True),
    options=st.sampled_from([BY_TRADES, BY_TIME]),
    has_side=st.booleans(),
)
def test_neither_batches_nor_files_change_a_byte(
    seed: int,
    batch_rows: int,
    borders: list[int],
    options: BuildOptions,
    has_side: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    trades = random_trades(600, seed)
    # Files are ordered by their first instant: cut where the time changes.
    cuts = [border for border in sorted(borders) if trades.time_ns[border] > trades.time_ns[border - 1]]
    build_dataset(write_parquet(folder / "whole.parquet", trades, side=has_side), folder / "one", options)
    (folder / "cut").mkdir()
    edges = [0, *cuts, 600]
    for number, (start, stop) in enumerate(pairwise(edges)):
        write = write_csv if number % 2 else write_parquet
        suffix = "csv" if number % 2 else "parquet"
        write(folder / "cut" / f"{9 - number}.{suffix}", part(trades, start, stop), side=has_side)

    build_dataset(folder / "cut", folder / "two", options, batch_rows=batch_rows)

    assert content(folder / "one") == content(folder / "two")


@OPTIONS
@pytest.mark.parametrize("changed_from", [300, 1500, 2400])
def test_later_trades_change_no_earlier_row(options: BuildOptions, changed_from: int, tmp_path: Path) -> None:
    trades = random_trades(3000, 2, max_gap_ms=2000)
    other = Trades(trades.time_ns, trades.price.copy(), trades.volume.copy(), -trades.side)
    other.side[:changed_from] = trades.side[:changed_from]
    other.price[changed_from:] = np.round(trades.price[changed_from:] + 3, 1)
    other.volume[changed_from:] *= 2
    build_dataset(write_parquet(tmp_path / "a.parquet", trades), tmp_path / "a", options)
    build_dataset(write_parquet(tmp_path / "b.parquet", other), tmp_path / "b", options)

    a, b = read_rows(tmp_path / "a"), read_rows(tmp_path / "b")
    changed_ns = trades.time_ns[changed_from]
    is_past, is_certain = a.time_ns < changed_ns, a.label_end_ns < changed_ns
    assert is_past.sum() > 10
    assert a.features[is_past].tobytes() == b.features[: len(a)][is_past].tobytes()
    assert (a.label == b.label)[is_certain].all()
    assert (a.label_end_ns == b.label_end_ns)[is_certain].all()
    assert a.features[-1].tobytes() != b.features[len(a) - 1].tobytes(), "the change was meant to be felt"


def test_every_label_is_known_after_its_row(tmp_path: Path) -> None:
    build_dataset(write_csv(tmp_path / "t.csv", random_trades(3000, 3)), tmp_path / "out", BY_TIME)
    rows = read_rows(tmp_path / "out")
    ahead = rows.label_end_ns - rows.time_ns
    assert ahead.min() > 0
    assert ahead.max() == 60 * SECOND


@OPTIONS
def test_metadata_tells_a_job_everything(options: BuildOptions, tmp_path: Path) -> None:
    build_dataset(write_csv(tmp_path / "t.csv", random_trades(2000, 0)), tmp_path / "out", options)
    for path in (tmp_path / "out").iterdir():
        metadata = json.loads(pq.read_schema(path).metadata[b"saimp"])
        assert metadata["version"] == 1
        assert (metadata["dtype"], metadata["shape"]) == ("float32", [4, 128])
        assert metadata["classes"] == ["Neutro", "Stop", "Long", "SuperLong"]
        assert metadata["horizon_s"] == (options.horizon_s or 0.0)
        assert metadata["build"]["level_size"] == TICK
        assert metadata["build"]["aggressor"] == "side"
        assert metadata["build"]["stop"] == options.stop


def test_features_are_stored_as_they_decode_fastest(tmp_path: Path) -> None:
    build_dataset(write_csv(tmp_path / "t.csv", random_trades(3000, 0)), tmp_path / "out", BY_TRADES)
    file = pq.ParquetFile(tmp_path / "out" / "2023-11.parquet", page_checksum_verification=True)
    assert file.schema_arrow.field("features").type == pa.binary(2048)
    assert str(file.schema_arrow.field("timestamp").type) == "timestamp[ns, tz=UTC]"
    assert str(file.schema_arrow.field("label_end").type) == "timestamp[ns, tz=UTC]"
    assert file.schema_arrow.field("label").type == pa.int8()
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    assert sizes[:-1] == [64] * (len(sizes) - 1)
    assert 0 < sizes[-1] <= 64
    features = file.metadata.row_group(0).column(1)
    assert features.path_in_schema == "features"
    assert features.compression == "UNCOMPRESSED"
    assert features.dictionary_page_offset is None
    assert features.statistics is None
    assert file.read().num_rows == sum(sizes)


def test_flipped_byte_is_caught_by_the_page_checksum(tmp_path: Path) -> None:
    build_dataset(write_csv(tmp_path / "t.csv", random_trades(3000, 0)), tmp_path / "out", BY_TRADES)
    path = tmp_path / "out" / "2023-11.parquet"
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(OSError, match="CRC"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


@pytest.mark.parametrize(
    ("period", "names"),
    [
        ("day", ["2023-11-14.parquet", "2023-11-15.parquet"]),
        ("month", ["2023-11.parquet"]),
        ("year", ["2023.parquet"]),
        ("all", ["all.parquet"]),
    ],
)
def test_one_file_per(period: str, names: list[str], tmp_path: Path) -> None:
    options = BuildOptions(bar_trades=20, horizon_bars=10, period=period)  # type: ignore[arg-type]
    trades = random_trades(9000, 0)  # 22:13 to 00:51
    summary = build_dataset(write_parquet(tmp_path / "t.parquet", trades), tmp_path / "out", options)
    assert list(summary.files) == sorted(content(tmp_path / "out")) == names
    assert (np.diff(read_rows(tmp_path / "out").time_ns) >= 0).all()


def test_progress_grows_to_the_whole(tmp_path: Path) -> None:
    seen: list[Progress] = []
    source = write_parquet(tmp_path / "t.parquet", random_trades(3000, 0))
    build_dataset(source, tmp_path / "out", BY_TRADES, on_progress=seen.append, batch_rows=500)
    assert [p.trades for p in seen] == [500, 1000, 1500, 2000, 2500, 3000]
    assert [p.share for p in seen] == sorted(p.share for p in seen)
    assert seen[-1].share == 1.0


def test_existing_target_is_refused_and_left_alone(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(2000, 0))
    build_dataset(source, tmp_path / "out", BY_TRADES)
    before = content(tmp_path / "out")
    with pytest.raises(TargetExists) as caught:
        build_dataset(source, tmp_path / "out", BY_TIME)
    assert caught.value.hint == "Use --replace, or another name."
    assert content(tmp_path / "out") == before


def test_replace_puts_the_new_dataset_in_place_of_the_old(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(2000, 0))
    build_dataset(source, tmp_path / "out", BY_TRADES)
    build_dataset(source, tmp_path / "new", BY_TIME)
    build_dataset(source, tmp_path / "out", BY_TIME, replace=True)
    assert content(tmp_path / "out") == content(tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == ["new", "out", "t.csv"]


def test_failed_replace_leaves_the_old_dataset_and_no_litter(tmp_path: Path) -> None:
    build_dataset(write_csv(tmp_path / "t.csv", random_trades(2000, 0)), tmp_path / "out", BY_TRADES)
    before = content(tmp_path / "out")
    trades = random_trades(2000, 0)
    trades.time_ns[1900] = trades.time_ns[0]
    bad = write_csv(tmp_path / "bad.csv", trades)
    with pytest.raises(UnsortedTrades):
        build_dataset(bad, tmp_path / "out", BY_TRADES, replace=True, batch_rows=100)
    with pytest.raises(KeyboardInterrupt):
        build_dataset(
            tmp_path / "t.csv",
            tmp_path / "out",
            BY_TRADES,
            replace=True,
            on_progress=_interrupt,
            batch_rows=99,
        )
    assert content(tmp_path / "out") == before
    assert sorted(os.listdir(tmp_path)) == ["bad.csv", "out", "t.csv"]


def _interrupt(progress: Progress) -> None:
    if progress.rows:
        raise KeyboardInterrupt


def test_replace_destroys_nothing_but_a_built_dataset(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(2000, 0))
    target = tmp_path / "precious"
    target.mkdir()
    (target / "thesis.txt").write_text("years of work")
    with pytest.raises(TargetExists, match="more than a dataset"):
        build_dataset(source, target, BY_TRADES, replace=True)
    write_parquet(tmp_path / "theirs.parquet", random_trades(5, 0))
    with pytest.raises(TargetExists, match="more than a dataset"):
        build_dataset(source, tmp_path / "theirs.parquet", BY_TRADES, replace=True)
    assert (target / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("target", ["trades", "trades/out", "."])
def test_dataset_and_trades_must_lie_apart(target: str, tmp_path: Path) -> None:
    source = tmp_path / "trades"
    source.mkdir()
    write_csv(source / "t.csv", random_trades(2000, 0))
    with pytest.raises(TargetExists, match="one inside the other"):
        build_dataset(source, tmp_path / target, BY_TRADES, replace=True)


def test_target_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(2000, 0))
    (tmp_path / "file").touch()
    with pytest.raises(CannotWrite, match="out cannot be written"):
        build_dataset(source, tmp_path / "file" / "out", BY_TRADES)


def test_too_few_bars_are_counted_in_the_message(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(80, 0))
    with pytest.raises(TooFewBars, match="80 trades make 11 bars of 7 trades: none has a full horizon"):
        build_dataset(source, tmp_path / "out", BY_TRADES)
    with pytest.raises(TooFewBars, match="make 0 bars of 200 trades"):
        build_dataset(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["t.csv"]


def test_nothing_is_made_when_there_are_no_trades(tmp_path: Path) -> None:
    with pytest.raises(NoTradeFiles):
        build_dataset(tmp_path / "nowhere", tmp_path / "data" / "out")
    assert os.listdir(tmp_path) == []


def test_missing_class_and_narrow_ladder_are_warned_about(tmp_path: Path) -> None:
    options = BuildOptions(bar_trades=50, horizon_bars=5, level_size=0.001, target=9e6, target_high=1e7)
    summary = build_dataset(write_csv(tmp_path / "t.csv", random_trades(3000, 0)), tmp_path / "out", options)
    assert summary.beyond_ladder > 0.5
    assert any("No row is Long" in warning for warning in summary.warnings)
    assert any("beyond the ladder" in warning for warning in summary.warnings)


def test_without_a_side_the_metadata_says_tick_rule(tmp_path: Path) -> None:
    source = write_csv(tmp_path / "t.csv", random_trades(2000, 0), side=False)
    assert build_dataset(source, tmp_path / "out", BY_TRADES).aggressor == "tick_rule"


def test_named_columns_reach_the_reader(tmp_path: Path) -> None:
    rows = [f"{1_735_689_600 + i},{100 + i % 3},{1 + i}" for i in range(100)]
    source = lines(tmp_path / "t.csv", "when,what,much", *rows)
    columns = Columns(timestamp="when", price="what", volume="much")
    options = BuildOptions(columns=columns, bar_trades=2, stop=1, target=1, target_high=2, horizon_bars=3)
    assert build_dataset(source, tmp_path / "out", options).rows == 47


@pytest.mark.parametrize(
    "wrong",
    [
        {"bar_trades": 0},
        {"bar_trades": None},
        {"bar_s": 1.0},
        {"bar_trades": None, "bar_s": float("nan")},
        {"level_size": 0.0},
        {"level_size": float("inf")},
        {"stop": -1.0},
        {"target": 9.0, "target_high": 9.0},
        {"horizon_bars": 0},
        {"horizon_bars": None},
        {"horizon_s": 5.0},
        {"rows_per_group": 0},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidBuildOption):
        BuildOptions(**wrong)  # type: ignore[arg-type]


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    options = replace(BY_TRADES, level_size=TICK)

    def peak_bytes(num_trades: int) -> int:
        source = write_parquet(tmp_path / f"{num_trades}.parquet", random_trades(num_trades, 0))
        arrow_bytes = 0

        def look(_: Progress) -> None:
            nonlocal arrow_bytes
            arrow_bytes = max(arrow_bytes, pa.total_allocated_bytes())

        gc.collect()
        tracemalloc.start()
        try:
            build_dataset(source, tmp_path / f"{num_trades}", options, on_progress=look, batch_rows=5000)
            return tracemalloc.get_traced_memory()[1] + arrow_bytes
        finally:
            tracemalloc.stop()

    peak_bytes(5_000)  # imports and caches
    assert peak_bytes(200_000) < 1.5 * peak_bytes(25_000)
