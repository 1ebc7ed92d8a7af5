"""The version of the product."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def version_text() -> str:
    """Name the version that is installed; of a source tree that was never installed, "0+source"."""
    try:
        return version("saimp-train")
    except PackageNotFoundError:
        return "0+source"
