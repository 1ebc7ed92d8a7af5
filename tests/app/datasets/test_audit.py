"""The leak audit: every planted leak is found, honest data give nothing."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from app.cli.data_audit import audit as audit_command
from app.datasets import demo
from app.datasets.audit import audit_dataset
from app.datasets.audit.collect import collect
from app.datasets.audit.hashes import HashSample, mixed, row_hashes, window_hashes
from app.datasets.build import build_dataset
from app.datasets.moments import Moments
from app.jobs.config import DataConfig
from tests.app.datasets.make import SECOND, START_S, table, write
from tests.app.datasets.market import LEAKS, Columns, autoregressive, market, table_of, trailing

command = typer.Typer()
command.command()(audit_command)


def found_in(root: Path, **fields: Any) -> list[dict[str, Any]]:
    data = DataConfig.model_validate({"path": "a.parquet", "window": 8, **fields})
    findings: list[dict[str, Any]] = audit_dataset(root, data)["findings"]
    return findings


def codes(root: Path, columns: Columns, **fields: Any) -> list[str]:
    write(root, "a.parquet", table_of(columns))
    return [finding["code"] for finding in found_in(root, **fields)]


# Planted


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("spoil", "code"), LEAKS.values(), ids=LEAKS)
def test_a_planted_leak_is_found(
    tmp_path: Path, spoil: Callable[[Columns], Columns], code: str, seed: int
) -> None:
    write(tmp_path, "a.parquet", table_of(spoil(market(3000, seed))))
    found = {finding["code"]: finding for finding in found_in(tmp_path)}
    assert code in found
    assert found[code]["severity"] == "leak"
    assert found[code]["message"].endswith(".")
    assert found[code]["remedy"]
    json.dumps(found, allow_nan=False)


def test_a_file_named_as_held_out_that_trains_is_suspect(tmp_path: Path) -> None:
    for name, group in (("train", "x"), ("val", "y")):
        columns = market(1000, ord(group)) | {"group": np.array([group] * 1000)}
        write(tmp_path, f"set/{name}.parquet", table_of(columns))
    (finding,) = found_in(tmp_path, path="set", group="group")
    assert (finding["code"], finding["severity"]) == ("held_out_file_in_training", "suspect")
    assert "set/val.parquet" in finding["message"]
    assert finding["evidence"]["rows"] == 800


def test_a_held_out_file_where_the_split_puts_it_is_not_mentioned(tmp_path: Path) -> None:
    rows = market(1000)
    for name, part in (("train", slice(0, 800)), ("val", slice(800, 1000))):
        write(tmp_path, f"set/{name}.parquet", table_of({key: rows[key][part] for key in rows}))
    assert found_in(tmp_path, path="set") == []


def test_leaks_are_found_in_lists_and_binary_too(tmp_path: Path) -> None:
    columns = market(3000)
    rows = np.stack([columns["price"], columns["noise"], columns["label"]], axis=1).astype("<f4")
    layouts = {
        "list": pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), 3),
        "binary": pa.array([row.tobytes() for row in rows], pa.binary(12)),
    }
    plain = table_of({key: columns[key] for key in ("timestamp", "label", "label_end")})
    for layout, features in layouts.items():
        write(tmp_path, f"{layout}.parquet", plain.append_column("features", features))
        (finding,) = found_in(tmp_path, path=f"{layout}.parquet", shape=[3])
        assert finding["code"] == "feature_is_label"
        assert "features[2]" in finding["message"]


def test_a_leak_in_one_group_s_scaling_is_found(tmp_path: Path) -> None:
    tables = []
    for seed, name in enumerate(("x", "y")):
        columns = market(2000, seed)
        price = columns["price"]
        tables.append(
            table_of(
                columns | {"price": (price - price.mean()) / price.std() + 5 * seed, "group": [name] * 2000}
            )
        )
    write(tmp_path, "a.parquet", pa.concat_tables(tables))
    (finding,) = found_in(tmp_path, group="group")
    assert finding["code"] == "normalised_on_all_data"
    assert "of group x" in finding["message"]


# Honest


def clean(num_rows: int, label: Any, horizon: int, **features: Any) -> Columns:
    times = (START_S + np.arange(num_rows)) * SECOND
    return {"timestamp": times, "label_end": times + horizon * SECOND, "label": label, **features}


def moved(price: Any, horizon: int, band: float) -> Any:
    move = price[horizon:] - price[:-horizon]
    return np.where(move < -band, 0, np.where(move > band, 2, 1))


def shifted(values: Any) -> Any:
    return np.concatenate([values[:1], values[:-1]])


def wild_spells(n: int, rng: np.random.Generator) -> Columns:
    steps, wildness = np.zeros(n + 10), np.ones(n + 10)
    for row in range(1, n + 10):
        wildness[row] = 0.02 + 0.1 * steps[row - 1] ** 2 + 0.88 * wildness[row - 1]
        steps[row] = np.sqrt(wildness[row]) * rng.standard_normal()
    volume = np.sqrt(wildness[:n]) * np.exp(0.3 * rng.standard_normal(n))
    price = np.cumsum(steps)
    features = {"price": price[:n], "size": np.abs(steps[:n]), "volume": volume}
    return clean(n, moved(price, 10, 2), 10, **features, spell=trailing(steps[:n] ** 2, 20))


def days(n: int, rng: np.random.Generator) -> Columns:
    moment = np.arange(n + 10) % 390
    pace = 1 + 3 * np.exp(-moment / 20)
    price = np.cumsum(pace * rng.standard_normal(n + 10))
    volume, clock = pace[:n] * np.exp(0.2 * rng.standard_normal(n)), np.sin(moment[:n] * 2 * np.pi / 390)
    return clean(n, moved(price, 10, 4), 10, price=price[:n], volume=volume, clock=clock)


def learnable(n: int, rng: np.random.Generator) -> Columns:
    x, y = autoregressive(rng, n, 0.8), rng.standard_normal(n)
    label = (x + y + 0.5 * rng.standard_normal(n) > 0).astype(int)
    return clean(n, label, 5, x=x, x_before=shifted(x), y=y, y_before=shifted(y))


def reverting(n: int, rng: np.random.Generator) -> Columns:
    x = autoregressive(rng, n + 5, 0.5)
    label = (x[5:] > x[:-5]).astype(int)
    return clean(n, label, 5, x=x[:n], before=shifted(x[:n]), mean=trailing(x[:n], 5))


def regimes(n: int, rng: np.random.Generator) -> Columns:
    x = autoregressive(rng, n + 5, 0.9)
    return clean(n, (x[5:] > 0).astype(int), 5, x=x[:n], before=shifted(x[:n]), mean=trailing(x[:n], 5))


def coarse(n: int, rng: np.random.Generator) -> Columns:
    steps = rng.choice([-1, 0, 1], n + 10, p=[0.1, 0.8, 0.1])
    flags = (rng.random(n) < 0.5) * 1.0
    return clean(n, moved(np.cumsum(steps), 10, 1), 10, sign=steps[:n] * 1.0, flag=flags)


def halted(n: int, rng: np.random.Generator) -> Columns:
    columns = market(n, int(rng.integers(1000)))
    for name in set(columns) - {"timestamp", "label_end", "label"}:
        columns[name] = np.array(columns[name])
        for start in range(100, n, 500):
            columns[name][start : start + 60] = 0
    return columns


def persistent_labels(n: int, rng: np.random.Generator) -> Columns:
    label = np.repeat(rng.integers(0, 3, n // 40 + 1), 40)[:n]
    return clean(n, label, 0, state=shifted(label) * 1.0, x=autoregressive(rng, n, 0.99))


def bounded(n: int, rng: np.random.Generator) -> Columns:
    price = np.cumsum(rng.standard_normal(n + 10))
    place = np.array([(price[t] - low) / (high - low) for t, low, high in _ranges(price, n)])
    clipped = np.clip(autoregressive(rng, n, 0.97) / 10, -1, 1)
    return clean(n, moved(price, 10, 2), 10, price=price[:n], place=place, clipped=clipped)


def _ranges(price: Any, n: int) -> list[tuple[int, float, float]]:
    spans = [(t, price[max(0, t - 13) : t + 1]) for t in range(n)]
    return [(t, float(span.min()), float(span.max() + (span.max() == span.min()))) for t, span in spans]


def fitted_on_train(n: int, rng: np.random.Generator) -> Columns:
    columns = market(n, int(rng.integers(1000)))
    train = columns["price"][: n * 8 // 10]
    spread = train.max() - train.min()
    scaled = (columns["price"] - train.mean()) / train.std()
    return columns | {"price": scaled, "ranged": (columns["price"] - train.min()) / spread}


CLEAN: dict[str, Callable[[int, np.random.Generator], Columns]] = {
    "random walk": lambda n, rng: market(n, int(rng.integers(1000))),
    "random walk, one row ahead": lambda n, rng: market(n, int(rng.integers(1000)), horizon=1),
    "random walk, 100 rows ahead": lambda n, rng: market(n, int(rng.integers(1000)), horizon=100),
    "wild spells": wild_spells,
    "days": days,
    "learnable": learnable,
    "reverting": reverting,
    "regimes": regimes,
    "coarse": coarse,
    "halted": halted,
    "persistent labels": persistent_labels,
    "bounded": bounded,
    "fitted on train": fitted_on_train,
}


@pytest.mark.parametrize("num_rows", [2500, 12_000])
@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN)
def test_honest_data_give_nothing(
    tmp_path: Path, make: Callable[[int, np.random.Generator], Columns], num_rows: int
) -> None:
    for seed in range(2):
        assert codes(tmp_path, make(num_rows, np.random.default_rng(seed))) == []


@pytest.mark.parametrize(
    "bars", [{}, {"bar_trades": 200, "bar_s": None}, {"bar_trades": 60, "bar_s": None}], ids=str
)
def test_the_synthetic_order_flow_gives_nothing(tmp_path: Path, bars: dict[str, Any]) -> None:
    trades = tmp_path / "trades.parquet"
    pq.write_table(demo.synthetic_trades(300_000, 0), trades)
    options = demo.demo_build_options(demo.TradeSource(trades, "made up", synthetic=True))
    build_dataset(trades, tmp_path / "set", dataclasses.replace(options, **bars))
    assert found_in(tmp_path, path="set", window=32) == []


@pytest.mark.parametrize("num_rows", [40, 60, 250])
def test_few_rows_give_nothing(tmp_path: Path, num_rows: int) -> None:
    split = {"train": 0.5, "val": 0.5, "test": 0.0}
    for seed in range(5):
        assert codes(tmp_path, market(num_rows, seed), window=2, split=split) == []


def test_groups_of_honest_data_give_nothing(tmp_path: Path) -> None:
    tables = [table_of(market(1500, seed) | {"group": [f"g{seed}"] * 1500}) for seed in range(4)]
    write(tmp_path, "a.parquet", pa.concat_tables(tables))
    split = {"train": 0.6, "val": 0.2, "test": 0.2}
    assert found_in(tmp_path, group="group", split=split) == []


def test_no_horizon_without_evidence_is_a_warning_only(tmp_path: Path) -> None:
    columns = market(2000)
    columns["label"] = np.random.default_rng(3).integers(0, 3, 2000)
    del columns["label_end"]
    write(tmp_path, "a.parquet", table_of(columns))
    report = audit_dataset(tmp_path, DataConfig(path="a.parquet", window=8))
    assert report["findings"] == []
    assert "no_horizon" in [warning["code"] for warning in report["warnings"]]


# Bounds


def test_a_sample_of_stretches_finds_what_all_rows_show(tmp_path: Path) -> None:
    spoil, code = LEAKS["a centred average"]
    with patch("app.datasets.audit.sample.MAX_ROWS", 4096):
        assert codes(tmp_path, market(20_000)) == []
        assert code in codes(tmp_path, spoil(market(20_000)))


def test_copies_are_found_when_few_contents_are_kept(tmp_path: Path) -> None:
    spoil, _ = LEAKS["a period stored twice"]
    with patch("app.datasets.audit.collect.KEPT_CONTENTS", 1000):
        write(tmp_path, "a.parquet", table_of(spoil(market(20_000))))
        finding = found_in(tmp_path)[0]
    assert finding["code"] == "duplicate_windows"
    assert finding["message"].startswith("about ")
    assert 60 < finding["evidence"]["windows"] < 600  # 193 in truth


def test_batches_and_row_groups_change_nothing(tmp_path: Path) -> None:
    spoil, _ = LEAKS["a period stored twice"]
    rows = table_of(spoil(market(3000)))
    write(tmp_path, "a.parquet", rows)
    write(tmp_path, "b.parquet", rows, row_group_size=7)
    first, second = found_in(tmp_path), found_in(tmp_path, path="b.parquet")
    assert [one["evidence"] for one in first] == [one["evidence"] for one in second]


def test_memory_does_not_grow_with_rows(tmp_path: Path) -> None:
    peaks = []
    with (
        patch("app.datasets.audit.sample.MAX_ROWS", 2048),
        patch("app.datasets.audit.collect.KEPT_CONTENTS", 2048),
        patch("app.datasets.audit.collect.KEPT_PLACES", 2048),
        patch("app.datasets.parquet.BATCH_ROWS", 4096),
        patch("app.datasets.scan.BATCH_ROWS", 4096),
        patch("app.datasets.cuts.SPAN_ROWS", 4096),
        patch("app.datasets.cuts.GATHER_VALUES", 4096),
    ):
        for num_rows in (20_000, 100_000):
            write(tmp_path, "a.parquet", table_of(market(num_rows)))
            tracemalloc.start()
            found_in(tmp_path)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_past_the_deadline_what_was_read_is_judged(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table_of(market(3000)))
    data = DataConfig(path="a.parquet", window=8)
    with patch("app.datasets.audit.audit.collect", _collect_late):
        report = audit_dataset(tmp_path, data)
    assert report["is_partial"]
    assert report["rows_read"] == 0
    assert report["findings"] == []


def _collect_late(dataset: Any, data: Any, plan: Any, _: Any) -> Any:
    return collect(dataset, data, plan, deadline=-1.0)


# Parts of it


def test_equal_rows_and_windows_have_equal_names_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((500, 3)).astype(np.float32)
    rows[300:320] = rows[100:120]
    names = row_hashes(rows)
    assert (names[300:320] == names[100:120]).all()
    assert len(np.unique(names)) == 480
    windows = window_hashes(names, 8)
    equal = {(i, j) for i in range(493) for j in range(i) if windows[i] == windows[j]}
    assert equal == {(300 + k, 100 + k) for k in range(13)}


def test_a_hash_sample_keeps_every_copy_of_what_it_keeps() -> None:
    names = mixed(np.arange(10_000, dtype=np.uint64) % 2500)
    sample = HashSample(1000, 1)
    for start in range(0, 10_000, 333):
        sample.add(names[start : start + 333], np.arange(start, min(start + 333, 10_000)))
    kept, _ = sample.take()
    assert 0 < len(kept) <= 1000
    assert set(np.unique(kept, return_counts=True)[1]) == {4}
    assert len(kept) / 10_000 == pytest.approx(sample.share, rel=0.2)


def test_moments_are_those_of_all_finite_values_whatever_the_batches() -> None:
    rng = np.random.default_rng(1)
    values = rng.standard_normal((1000, 3)) * [1, 1e3, 1e-3] + [0, 1e6, 5]
    values[::7, 1] = np.nan
    values[5, 0] = np.inf
    moments = Moments(3)
    for part in np.array_split(values, 13):
        moments.add(part)
    finite = np.where(np.isfinite(values), values, np.nan)
    np.testing.assert_allclose(moments.mean, np.nanmean(finite, axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.deviation, np.nanstd(finite, axis=0), rtol=1e-9)
    assert moments.num_bad.tolist() == [1, 143, 0]
    assert moments.low.tolist() == np.nanmin(finite, axis=0).tolist()


# The command


def test_the_command_says_what_it_found_and_fails(tmp_path: Path) -> None:
    spoil, _ = LEAKS["the label as a feature"]
    write(tmp_path, "a.parquet", table_of(spoil(market(1000))))
    done = CliRunner().invoke(command, ["a.parquet", "--data-root", str(tmp_path)])
    assert done.exit_code == 1
    assert "leak     [feature_is_label] Feature signal is the label" in done.output
    assert "1 finding in 1,000 rows of a.parquet" in done.output
    done = CliRunner().invoke(command, ["a.parquet", "--data-root", str(tmp_path), "-o", "json"])
    assert done.exit_code == 1
    assert json.loads(done.stdout) == audit_dataset(tmp_path, DataConfig(path="a.parquet"))


def test_the_command_succeeds_on_honest_data(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table_of(market(1000)))
    done = CliRunner().invoke(command, ["a.parquet", "--data-root", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "No findings in 1,000 rows" in done.output


def test_the_command_refuses_what_cannot_be_trained_on(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", table(20))
    done = CliRunner().invoke(command, ["a.parquet", "--data-root", str(tmp_path)])
    assert done.exit_code == 1
    assert "empty_split" in done.output
