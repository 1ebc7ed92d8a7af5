"""The table of faults names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "tests" / "FAULTS.md").read_text(encoding="utf-8")


def test_every_row_is_there_in_order() -> None:
    numbers = [int(number) for number in re.findall(r"^\| (\d+) \|", TABLE, re.MULTILINE)]
    assert len(numbers) >= 45
    assert numbers == list(range(1, len(numbers) + 1))


def test_every_test_of_the_table_exists() -> None:
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", TABLE))
    assert len(named) > 40
    for file, name in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert any(isinstance(node, ast.FunctionDef) and node.name == name for node in tree.body), (
            f"{file} has no {name}"
        )


def test_a_row_without_a_test_says_why() -> None:
    for row in re.findall(r"^\| \d+ \|.*$", TABLE, re.MULTILINE):
        assert "::test_" in row, row
