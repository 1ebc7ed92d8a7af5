"""The demo, whole, on a dataset small enough for a test; and the service it runs."""

from __future__ import annotations

import re
import shlex
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from app.cli import demo
from app.cli.recipes import KNOWN, TUNED, Recipe
from app.cli.service import ServiceDied, service
from app.client import Client, Json
from tests.app.cli.call import saimp
from tests.factories import write_dataset
from tests.processes import environment, eventually, is_gone


@pytest.fixture(autouse=True)
def own_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The demo turns a polite kill into an interrupt: not for the tests behind it."""
    for name, value in environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def _briefly(recipe: Recipe) -> Json:
    training = {**recipe.sections["training"], "epochs": 1, "threads": 1}
    return {"model": {"name": "mlp"}, **recipe.sections, "training": training}


def with_dataset(monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
    """Let the demo train on a small dataset."""
    brief = [replace(recipe, sections=_briefly(recipe)) for recipe in (KNOWN, TUNED)]
    monkeypatch.setattr(demo, "KNOWN", brief[0])
    monkeypatch.setattr(demo, "TUNED", brief[1])

    def prepare(root: Path, _console: Console) -> str:
        write_dataset(root / "data" / "demo", rows=480, **options)
        return "demo"

    monkeypatch.setattr(demo, "_prepare", prepare)


def test_the_demo_compares_two_recipes_and_uses_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_dataset(monkeypatch)
    before = set(psutil.Process().children())  # other tests' database server may be there
    for _ in range(2):
        result = saimp("demo", "--root", tmp_path / "demo")
        assert result.exit_code == 0, result.output
    text = result.stdout
    url = re.search(r"served at +(http://127\.0\.0\.1:\d+)", text)
    assert url is not None
    assert f"service     {url[1]}" in text
    assert text.count("✓ succeeded") == 2
    for split in ("training", "validation", "test"):
        assert re.search(rf"^{split} +\d+ windows until 1970-01-01 00:0\d: Neutro \d+%", text, re.MULTILINE)
    for row in ("known recipe", "tuned recipe"):
        assert (
            len(re.findall(rf"^  {row}( +-?\d\.\d{{3}}){{4}}( +\d+\.\d{{4}}){{2}}$", text, re.MULTILINE)) == 2
        )
    assert len(re.findall(r"^  class frequencies( +\d\.\d{3}){4}", text, re.MULTILINE)) == 2
    assert re.search(r"On test, .*what needs no model:\n", text)
    assert "sha256 verified; loaded with torch.load(weights_only=True)" in text
    used = re.search(r"^used +saimp (predict .*)$\n +a class .* each of (\d+) windows", text, re.MULTILINE)
    assert used is not None
    predictions = pq.read_table(tmp_path / "demo" / "predictions.parquet")
    assert predictions.num_rows == int(used[2]) > 0
    assert saimp(*shlex.split(used[1])).exit_code == 0  # what the screen says can be typed
    for label in ("checkpoint", "curves", "log"):
        found = re.search(rf"^{label} +(\S+)", text, re.MULTILINE)
        assert found is not None
        assert Path(found[1]).stat().st_size > 0
    assert set(psutil.Process().children()) == before
    assert "Traceback" not in result.output


def test_a_job_that_fails_says_why_and_shows_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_dataset(monkeypatch, bad_row=300)
    result = saimp("demo", "--root", tmp_path / "demo")
    assert result.exit_code == 1
    assert "✗ failed (data_invalid)" in result.stdout
    assert "its log ends with" in result.stderr
    assert "[END] failed (data_invalid)" in result.stderr


def test_what_an_earlier_demo_left_is_cancelled(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data" / "demo")
    with service(tmp_path / "data", tmp_path / "logs") as running:
        with Client(running.wait_for_url()) as client:
            later = {"not_before": "2099-01-01T00:00:00Z"}
            job = client.submit({"data": {"path": "demo", "window": 4}, **later})
            demo._sweep(client)
            assert client.job(job["id"])["status"] == "cancelled"
        pids = [child.pid for child in psutil.Process(running.process.pid).children(recursive=True)]
    assert running.process.returncode == 0
    eventually(lambda: all(is_gone(pid) for pid in pids), within_s=10)


def test_a_service_that_cannot_start_says_what_it_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "saimp.db").write_bytes(b"this is no database" * 100)
    with (
        service(tmp_path / "data", tmp_path / "logs") as running,
        pytest.raises(ServiceDied, match=r"did not start:\n *error: .*not a database"),
    ):
        running.wait_for_url()
    assert running.process.returncode == 1
