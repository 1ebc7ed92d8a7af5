"""`saimp data build` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from app.cli.data_build import build
from tests.app.datasets.build.make import lines, random_trades, read_rows, write_csv


def run(*arguments: object) -> Result:
    app = typer.Typer()
    app.command()(build)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def trades(tmp_path: Path) -> Path:
    return write_csv(tmp_path / "t.csv", random_trades(12_000, 0))


def test_build_tells_what_it_made(trades: Path, tmp_path: Path) -> None:
    result = run(trades, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "10 rows in 1 file(s)" in result.stdout
    assert "aggressor from the side column" in result.stdout
    assert "100%  12,000 trades, 60 bars" in result.stderr


def test_json_summary_is_the_only_thing_on_stdout(trades: Path, tmp_path: Path) -> None:
    result = run(trades, tmp_path / "out", "-o", "json")
    summary = json.loads(result.stdout)
    assert summary["rows"] == len(read_rows(tmp_path / "out")) == 10
    assert summary["class_counts"].keys() == {"Neutro", "Stop", "Long", "SuperLong"}


def test_options_reach_the_build(trades: Path, tmp_path: Path) -> None:
    options = "--bar-seconds 60 --horizon-seconds 600 --stop 4 --target 5 --target-high 9 --level-size 0.2"
    files = "--period day --rows-per-group 16 --tick-rule -o json"
    result = run(trades, tmp_path / "out", *options.split(), *files.split())
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["level_size"], summary["aggressor"]) == (0.2, "tick_rule")
    assert summary["files"] == ["2023-11-14.parquet", "2023-11-15.parquet"]


def test_columns_can_be_named(tmp_path: Path) -> None:
    rows = [f"{1_735_689_600 + i},{100 + i % 3},{1 + i},{'s' if i % 2 else 'b'}" for i in range(100)]
    source = lines(tmp_path / "t.csv", "a,b,c,d", *rows)
    names = "--timestamp-column a --price-column b --volume-column c --side-column d"
    result = run(source, tmp_path / "out", *names.split(), "--bar-trades", 2, "--horizon-bars", 3)
    assert result.exit_code == 0, result.output
    assert "47 rows" in result.stdout


def test_error_is_one_sentence_its_code_and_what_to_do(trades: Path, tmp_path: Path) -> None:
    run(trades, tmp_path / "out")
    result = run(trades, tmp_path / "out")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "out exists already. [target_exists]" in result.stderr
    assert "Use --replace, or another name." in result.stderr
    assert run(trades, tmp_path / "out", "--replace").exit_code == 0


def test_wrong_option_is_a_named_error(trades: Path, tmp_path: Path) -> None:
    result = run(trades, tmp_path / "out", "--bar-trades", 0)
    assert result.exit_code == 2
    assert "bar_trades is 0; it must be between 1 and 1e+07." in result.stderr
