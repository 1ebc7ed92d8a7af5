"""Files in the order of their content: by first timestamp, whatever their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from app.datasets.errors import BadTimestamp, CorruptFile
from app.datasets.footers import Footer
from app.datasets.parquet import check_deadline, read_columns, read_first
from app.datasets.times import TimeUnit, detect_unit, raw_times
from app.errors import shown


@dataclass(frozen=True, slots=True)
class Ordered:
    """Files in content order. unit: of the stored times; is_detected: guessed from plain integers."""

    footers: tuple[Footer, ...]
    unit: TimeUnit
    is_detected: bool


def order_by_time(
    footers: Sequence[Footer], timestamp: str, is_grouped: bool, deadline: float | None = None
) -> Ordered:
    """Order non-empty files by (first time, last time, name).

    Reads the first row of each file; all of its times where groups may begin anew in a file, or where files
    begin at the same time. Raises BadTimestamp when units are mixed, PreflightTimeout past `deadline`.
    """
    stored: TimeUnit | None = getattr(footers[0].types[timestamp], "unit", None)
    firsts = {f.name: _first(f, timestamp, is_grouped, deadline) for f in footers}
    units = {name: stored or detect_unit(first) for name, first in firsts.items()}
    unit = units[footers[0].name]
    for footer in footers:
        if units[footer.name] != unit:
            raise BadTimestamp(
                f"{shown(timestamp)!r} counts {unit} in {shown(footers[0].name)} but {units[footer.name]} in"
                f" {shown(footer.name)} ({firsts[footer.name]}).",
                "Write all files in one unit; Arrow timestamps carry theirs.",
            )
    ties = Counter(firsts.values())

    def key(footer: Footer) -> tuple[int, int, str]:
        first = firsts[footer.name]
        return first, _range(footer, timestamp, deadline)[1] if ties[first] > 1 else first, footer.name

    return Ordered(tuple(sorted(footers, key=key)), unit, stored is None)


def _first(footer: Footer, timestamp: str, is_grouped: bool, deadline: float | None) -> int:
    """The first time, as stored."""
    if is_grouped:
        return _range(footer, timestamp, deadline)[0]
    check_deadline(deadline)
    array = read_first(footer.path, footer.name, timestamp, footer.row_groups)
    return int(raw_times(array, timestamp, footer.name, 0)[0])


def _range(footer: Footer, timestamp: str, deadline: float | None) -> tuple[int, int]:
    lows, highs = [], []
    for batch in read_columns(footer.path, footer.name, [timestamp], deadline=deadline):
        times = raw_times(batch.columns[timestamp], timestamp, footer.name, batch.first_row)
        lows.append(int(times.min()))
        highs.append(int(times.max()))
    if not lows:
        raise CorruptFile(f"{shown(footer.name)} has no rows where its footer claims {footer.rows:,}.")
    return min(lows), max(highs)
