"""`saimp config`, and the page that is printed by it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from app.jobs.config import JobRequest
from tests.app.cli.call import saimp

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_the_page_in_docs_is_current() -> None:
    assert PAGE.read_text() == saimp("config").stdout, "run: make fix"


def test_every_section_and_kind_is_there() -> None:
    page = saimp("config").stdout
    document = JobRequest.model_json_schema()
    for name in (name for name, node in document["properties"].items() if "properties" in node):
        assert f"## {name}" in page
    kinds = {
        kind["properties"]["name"]["const"]
        for kind in document["$defs"].values()
        if "const" in kind.get("properties", {}).get("name", {})
    }
    assert kinds == set(re.findall(r"^\*\*`(\w+)`\*\*", page, re.MULTILINE))


def test_every_table_has_as_many_cells_in_each_row() -> None:
    for line in saimp("config").stdout.splitlines():
        assert not line.startswith("|") or line.count("|") == 5, line


@pytest.mark.parametrize(("section", "says"), [("training", "`training.seed`"), ("job", "`priority`")])
def test_one_section_is_printed_alone(section: str, says: str) -> None:
    printed = saimp("config", section).stdout
    assert printed.startswith(f"## {section}\n")
    assert says in printed
    assert printed.count("## ") == 1


def test_a_section_that_is_not_there_is_a_usage_error() -> None:
    result = saimp("config", "trainin")
    assert result.exit_code == 2
    assert "Did you mean 'training'?" in result.output
