"""A job's body from a file, from stdin and from options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer

from app.cli.body import read_body


def write(folder: Path, text: str) -> str:
    path = folder / "job.json"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_path_alone_is_a_body() -> None:
    assert read_body(None, "btc", None, []) == {"data": {"path": "btc"}}


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path, json.dumps({"name": "a", "data": {"path": "x", "window": 8}, "tags": ["t"]}))
    body = read_body(file, "btc", "b", ["data.window=16", "training.epochs=3"])
    assert body == {
        "name": "b",
        "data": {"path": "btc", "window": 16},
        "tags": ["t"],
        "training": {"epochs": 3},
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("null", None),
        ("true", True),
        ("[1, 10]", [1, 10]),
        ("vivit", "vivit"),
        ("", ""),
        ("a=b", "a=b"),
        ("NaN", "NaN"),
        ('"3"', "3"),
    ],
)
def test_a_value_is_json_or_else_text(text: str, value: Any) -> None:
    assert read_body(None, None, None, [f"a.b={text}"]) == {"a": {"b": value}}


@pytest.mark.parametrize("assignment", ["training.epochs", "=3", "a..b=3", ".a=3"])
def test_an_assignment_that_is_none_is_refused(assignment: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"training\.epochs=3"):
        read_body(None, None, None, [assignment])


def test_an_assignment_into_no_section_is_refused() -> None:
    with pytest.raises(typer.BadParameter, match="path is no section"):
        read_body(None, "btc", None, ["data.path.x=1"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"a": 1,}', "line 1, column"),
        ("", "not JSON"),
        ("[1]", "one JSON object"),
        ('{"a": 1, "a": 2}', "'a' stands twice"),
        ('{"a": NaN}', "NaN"),
        ("[" * 100_000, "not JSON"),
    ],
    ids=["comma", "empty", "list", "twice", "nan", "deep"],
)
def test_a_file_that_is_no_job_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(typer.BadParameter, match=reason):
        read_body(write(tmp_path, text), None, None, [])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name in ("absent.json", "binary", "."):
        with pytest.raises(typer.BadParameter, match="cannot read"):
            read_body(str(tmp_path / name), None, None, [])


def test_nothing_is_nothing_to_submit() -> None:
    with pytest.raises(typer.BadParameter, match="--path"):
        read_body(None, None, None, [])
