"""Globs: what they name, and that no pattern and no tree makes them slow."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.datasets.globs import Glob


def is_named(pattern: str, path: str) -> bool:
    glob = Glob(pattern.split("/"))
    places = glob.start
    for name in path.split("/"):
        places = glob.step(places, name)
    return glob.is_match(places)


@pytest.mark.parametrize(
    ("pattern", "path", "is_one"),
    [
        ("a/*.parquet", "a/b.parquet", True),
        ("a/*.parquet", "a/b/c.parquet", False),
        ("**/c.parquet", "a/b/c.parquet", True),
        ("**/c.parquet", "c.parquet", True),
        ("a/**", "a", True),
        ("a/**/**/b", "a/x/b", True),
        ("[!a]+.parquet", "b+.parquet", True),
        ("[!a]+.parquet", "a+.parquet", False),
        ("[z-a]", "b", False),
        ("[", "[", True),
        ("?", "\n", True),
    ],
)
def test_a_glob_names_what_it_says(pattern: str, path: str, is_one: bool) -> None:
    assert is_named(pattern, path) is is_one


def obvious(parts: list[str], names: list[str]) -> bool:
    """Match by trying everything: slow, and plainly right."""
    if not parts:
        return not names
    if parts[0] == "**":
        return any(obvious(parts[1:], names[skip:]) for skip in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and obvious(parts[1:], names[1:])


@given(
    st.lists(st.sampled_from(["*", "**", "a*", "?", "[ab]", "a", "ab"]), min_size=1, max_size=5),
    st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=5),
)
def test_a_glob_names_what_trying_everything_names(parts: list[str], names: list[str]) -> None:
    assert is_named("/".join(parts), "/".join(names)) is obvious(parts, names)


def test_a_pattern_of_many_stars_takes_no_longer() -> None:
    assert not is_named("/".join(["**"] * 30 + ["b"]), "/".join(["a"] * 1000))
    assert not is_named("*a" * 100 + "*b", "a" * 250)
