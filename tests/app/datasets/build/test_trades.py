"""Reading trades: every form of file, and a named error for everything that is not a sequence of trades."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from app.datasets.build.errors import (
    BadTrade,
    InvalidBuildOption,
    MissingColumn,
    MissingValue,
    NoTradeFiles,
    NoTrades,
    OverlappingFiles,
    UnknownSide,
    UnreadableTrades,
    UnsortedTrades,
)
from app.datasets.build.options import Columns
from app.datasets.build.trades import Trades, order_files, read_trades
from app.errors import ServiceError
from tests.app.datasets.build.make import lines, part, random_trades, table, write_csv, write_parquet

HEADER = "timestamp,price,volume,side"
FIRST, SECOND, THIRD = (f"2025-01-01 12:00:0{n},100.5,2,buy" for n in (1, 2, 3))


def read(source: Path, columns: Columns | None = None, batch_rows: int = 1000) -> Trades:
    columns = columns or Columns()
    parts = list(read_trades(order_files(source, columns), columns, batch_rows))
    return Trades(
        np.concatenate([p.time_ns for p in parts]),
        np.concatenate([p.price for p in parts]),
        np.concatenate([p.volume for p in parts]),
        np.concatenate([p.side for p in parts]),
        parts[-1].progress,
    )


def same(one: Trades, other: Trades) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("time_ns", "price", "volume", "side")
    )


@pytest.mark.parametrize("batch_rows", [1, 7, 1000, 100_000])
def test_csv_and_parquet_hold_the_same_trades_in_batches_of(batch_rows: int, tmp_path: Path) -> None:
    trades = random_trades(1500, 0)
    for path in (write_csv(tmp_path / "a.csv", trades), write_parquet(tmp_path / "a.parquet", trades)):
        found = read(path, batch_rows=batch_rows)
        assert same(found, trades)
        assert found.progress == pytest.approx(1.0)


def test_gzipped_csv_is_read(tmp_path: Path) -> None:
    trades = random_trades(300, 0)
    plain = write_csv(tmp_path / "a.csv", trades)
    packed = tmp_path / "b.csv.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert same(read(packed), trades)


def test_files_are_ordered_by_content_not_by_name(tmp_path: Path) -> None:
    trades = random_trades(900, 0)
    write_csv(tmp_path / "c.csv", part(trades, 0, 300))
    write_parquet(tmp_path / "b.parquet", part(trades, 300, 600))
    (tmp_path / "deeper").mkdir()
    write_csv(tmp_path / "deeper" / "a.csv", part(trades, 600, 900))
    (tmp_path / ".hidden.csv").write_text("not trades")
    (tmp_path / "readme.txt").write_text("not trades either")
    assert same(read(tmp_path), trades)


BINANCE = [
    "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker",
    "26129,60000.1,0.5,27781,27781,1735732800000,true",
    "26130,60000.2,1.5,27782,27782,1735732800001,false",
]


@pytest.mark.parametrize("has_header", [True, False], ids=["with a header", "without a header"])
def test_binance_agg_trades_are_understood_as_they_are(has_header: bool, tmp_path: Path) -> None:
    trades = read(lines(tmp_path / "BTCUSDT-aggTrades-2025-01.csv", *BINANCE[not has_header :]))
    assert trades.time_ns.tolist() == [1_735_732_800_000_000_000, 1_735_732_800_001_000_000]
    assert trades.price.tolist() == [60000.1, 60000.2]
    assert trades.volume.tolist() == [0.5, 1.5]
    assert trades.side.tolist() == [-1, 1]  # the maker bought, so the taker sold


def test_binance_spot_archives_change_their_time_unit_between_files(tmp_path: Path) -> None:
    lines(tmp_path / "2024.csv", "1,100.1,1,1,1,1735689599999,True,True")
    lines(tmp_path / "2025.csv", "2,100.2,1,2,2,1735689600000001,False,True")
    assert np.diff(read(tmp_path).time_ns).tolist() == [1_001_000]


def test_binance_trades_without_a_header_are_understood(tmp_path: Path) -> None:
    trades = read(lines(tmp_path / "t.csv", "1,100.1,2,200.2,1735689600000,true,true"))
    assert (trades.price[0], trades.volume[0], trades.side[0]) == (100.1, 2, -1)


def test_mlfinpy_columns_are_understood(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "DateTime,Price,Volume", "2013-09-01 17:00:00.083,1640.25,8")
    trades = read(path)
    assert trades.time_ns.tolist() == [1_378_054_800_083_000_000]
    assert (trades.price[0], trades.volume[0]) == (1640.25, 8)


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", "t,p,q,time,m", "1735689600,5.5,2,99,false", "1735689601,5,2,98,true")
    trades = read(path, Columns(timestamp="t", price="p", volume="q", maker="m"))
    assert (trades.price.tolist(), trades.side.tolist()) == ([5.5, 5.0], [1, -1])


def test_tick_rule_decides_over_the_side_when_asked(tmp_path: Path) -> None:
    path = lines(tmp_path / "t.csv", HEADER, FIRST, SECOND.replace("100.5", "99.5"))
    assert read(path).side.tolist() == [1, 1]
    assert read(path, Columns(tick_rule=True)).side.tolist() == [1, -1]


def test_tick_rule_runs_on_over_file_borders(tmp_path: Path) -> None:
    trades = random_trades(600, 3, max_step=1)
    write_csv(tmp_path / "whole.csv", trades, side=False)
    whole = read(tmp_path / "whole.csv")
    (tmp_path / "cut").mkdir()
    write_csv(tmp_path / "cut" / "a.csv", part(trades, 0, 250), side=False)
    write_parquet(tmp_path / "cut" / "b.parquet", part(trades, 250, 600), side=False)
    assert same(read(tmp_path / "cut"), whole)


def test_float32_and_decimal_prices_mean_their_decimal_text(tmp_path: Path) -> None:
    rows = table(random_trades(50, 0))
    for kind in (pa.float32(), pa.decimal128(20, 3), pa.string()):
        changed = rows.set_column(1, "price", rows["price"].cast(kind))
        pq.write_table(changed, tmp_path / "t.parquet")
        assert read(tmp_path / "t.parquet").price.tolist() == rows["price"].to_pylist(), kind


BAD_LINES: dict[str, tuple[list[str], type[ServiceError], str]] = {
    "unsorted": ([SECOND, FIRST], UnsortedTrades, "t.csv, row 2: 2025-01-01T12:00:01.000000000Z is earlier"),
    "zero volume": ([FIRST, SECOND.replace(",2,", ",0,")], BadTrade, "t.csv, row 2: volume is 0"),
    "negative volume": ([FIRST.replace(",2,", ",-3,")], BadTrade, "t.csv, row 1: volume is -3"),
    "negative price": ([FIRST, FIRST.replace("100.5", "-1")], BadTrade, "t.csv, row 2: price is -1"),
    "nan price": ([FIRST.replace("100.5", "nan")], MissingValue, "t.csv, row 1: no value in column 'price'"),
    "infinite price": ([FIRST.replace("100.5", "inf")], BadTrade, "t.csv, row 1: price is inf"),
    "absurd volume": ([FIRST.replace(",2,", ",1e300,")], BadTrade, "t.csv, row 1: volume is 1e+300"),
    "no price": ([FIRST, FIRST.replace("100.5", "")], MissingValue, "row 2: no value in column 'price'"),
    "no time": ([FIRST, ",1,1,buy"], MissingValue, "row 2: no value in column 'timestamp'"),
    "no side": ([FIRST, FIRST.replace("buy", "")], MissingValue, "row 2: no value in column 'side'"),
    "unknown side": ([FIRST, FIRST.replace("buy", "up")], UnknownSide, "t.csv, row 2: 'up' is no side"),
    "words for numbers": ([FIRST.replace("100.5", "cheap")], UnreadableTrades, "cheap"),
    "cut line": ([FIRST, SECOND[:22]], UnreadableTrades, "t.csv cannot be read"),
    "header only": ([], NoTrades, "t.csv holds no trade"),
}


@pytest.mark.parametrize(("rows", "error", "message"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_bad_csv_is_a_named_error(
    rows: list[str], error: type[ServiceError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        read(lines(tmp_path / "t.csv", HEADER, *rows))
    assert message in caught.value.message


@pytest.mark.parametrize("batch_rows", [2, 3, 100])
def test_disorder_is_found_at_a_batch_border_too(batch_rows: int, tmp_path: Path) -> None:
    trades = random_trades(9, 0)
    trades.time_ns[6] = trades.time_ns[5] - 1
    with pytest.raises(UnsortedTrades, match=r"t\.parquet, row 7"):
        read(write_parquet(tmp_path / "t.parquet", trades), batch_rows=batch_rows)


def test_row_numbers_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    trades = random_trades(50, 0)
    trades.volume[43] = np.nan
    with pytest.raises(BadTrade, match=r"t\.parquet, row 44: volume is nan"):
        read(write_parquet(tmp_path / "t.parquet", trades), batch_rows=8)


def test_overlapping_files_are_named_with_their_times(tmp_path: Path) -> None:
    write_csv(tmp_path / "a.csv", part(random_trades(100, 0), 0, 60))
    write_csv(tmp_path / "b.csv", part(random_trades(100, 0), 40, 100))
    with pytest.raises(OverlappingFiles, match=r"b\.csv starts at .* before a\.csv ends at"):
        read(tmp_path)


def test_missing_column_is_named_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(MissingColumn) as caught:
        read(lines(tmp_path / "t.csv", "timestamp,cost,volume", "2025-01-01,1,1"))
    assert "no column price" in caught.value.message
    assert "timestamp, cost, volume" in caught.value.message
    assert caught.value.hint == "Name it with --price-column."


def test_named_column_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "t.csv", random_trades(5, 0))
    with pytest.raises(MissingColumn, match="no column 'flag'"):
        read(path, Columns(maker="flag"))


def test_side_in_some_files_only_is_an_error(tmp_path: Path) -> None:
    trades = random_trades(100, 0)
    write_csv(tmp_path / "a.csv", part(trades, 0, 50))
    write_csv(tmp_path / "b.csv", part(trades, 50, 100), side=False)
    with pytest.raises(MissingColumn, match=r"b\.csv has no side column, a\.csv has one"):
        read(tmp_path)


def test_null_in_parquet_is_named_with_its_row(tmp_path: Path) -> None:
    rows = table(random_trades(3, 0)).set_column(2, "volume", pa.array([1.0, None, 2.0]))
    pq.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(MissingValue, match=r"t\.parquet, row 2: no value in column 'volume'"):
        read(tmp_path / "t.parquet")


def test_column_that_is_no_number_is_a_named_error(tmp_path: Path) -> None:
    rows = table(random_trades(2, 0)).set_column(1, "price", pa.array(["1.5", "cheap"]))
    pq.write_table(rows, tmp_path / "t.parquet")
    with pytest.raises(BadTrade, match="column 'price' is not a number"):
        read(tmp_path / "t.parquet")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all", b"PAR1" + b"\xff" * 40 + b"PAR1"])
def test_damaged_parquet_is_unreadable(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(UnreadableTrades, match=r"t\.parquet cannot be read"):
        read(tmp_path)


def test_truncated_parquet_is_unreadable(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "t.parquet", random_trades(500, 0))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableTrades):
        read(path)


def test_truncated_gzip_is_unreadable(tmp_path: Path) -> None:
    plain = write_csv(tmp_path / "t.csv", random_trades(500, 0)).read_bytes()
    path = tmp_path / "u.csv.gz"
    path.write_bytes(gzip.compress(plain)[:-500])
    with pytest.raises(UnreadableTrades):
        read(path)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x01,\x80\n\x81,2\n", b"\n\n\n"], ids=["binary", "blank"])
def test_csv_of_rubbish_is_a_named_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises((MissingColumn, UnreadableTrades)):
        read(tmp_path / "t.csv")


def test_empty_files_hold_no_trades(tmp_path: Path) -> None:
    (tmp_path / "t.csv").touch()
    with pytest.raises(NoTrades, match=r"t\.csv is empty"):
        read(tmp_path / "t.csv")
    write_parquet(tmp_path / "t.parquet", part(random_trades(1, 0), 0, 0))
    with pytest.raises(NoTrades, match=r"t\.parquet holds no trade"):
        read(tmp_path / "t.parquet")


def test_no_trade_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for source, message in (
        (tmp_path, "holds no trade file"),
        (tmp_path / "notes.txt", "is not a trade file"),
        (tmp_path / "nowhere", "does not exist"),
    ):
        with pytest.raises(NoTradeFiles, match=message):
            read(source)


def test_contradicting_columns_are_refused() -> None:
    with pytest.raises(InvalidBuildOption):
        Columns(side="s", maker="m")
    with pytest.raises(InvalidBuildOption):
        Columns(side="s", tick_rule=True)
