"""The version, of an installed package and of a bare source tree."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from unittest.mock import patch

from app import version as module
from app.version import version_text


def test_a_bare_source_tree_has_a_version_too() -> None:
    assert version_text()[0].isdigit()
    with patch.object(module, "version", side_effect=PackageNotFoundError):
        assert version_text() == "0+source"
