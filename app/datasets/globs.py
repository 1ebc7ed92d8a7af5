"""Globs over names with slashes, matched step by step, so that one pass over a tree is enough."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence

Places = frozenset[int]


def is_glob(name: str) -> bool:
    """Whether a name has wildcards in it."""
    return any(c in name for c in "*?[")


class Glob:
    """A glob as pathlib reads it: `*`, `?` and `[...]` stay inside a name, `**` crosses folders.

    A path is followed name by name as the set of places in the pattern that it may have come to. So a path
    costs its names times the pattern's, and a folder is looked at once, however often it could match.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._tests = [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]
        self.start = self._opened([0])

    def step(self, places: Places, name: str) -> Places:
        """Follow a path one name further; nothing is left where it cannot match any more."""
        reached = []
        for place in places:
            if place == len(self._tests):
                continue
            test = self._tests[place]
            if test is None:
                reached.append(place)
            elif test.match(name):
                reached.append(place + 1)
        return self._opened(reached)

    def is_match(self, places: Places) -> bool:
        """Whether the path so far is one that the glob names."""
        return len(self._tests) in places

    def _opened(self, places: Iterable[int]) -> Places:
        """Add the places behind a `**`, which may stand for no folder at all."""
        reached = set()
        for place in places:
            reached.add(place)
            while place < len(self._tests) and self._tests[place] is None:
                place += 1
                reached.add(place)
        return frozenset(reached)
