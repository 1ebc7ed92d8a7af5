"""Reading ahead keeps order, passes errors on and ends its thread."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest

from worker.stream.ahead import ReadAhead


def test_items_come_in_order_and_the_thread_ends() -> None:
    before = threading.active_count()
    assert list(ReadAhead(number for number in range(50))) == list(range(50))
    assert threading.active_count() == before


def test_an_error_is_raised_after_the_items_before_it() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    ahead = ReadAhead(items())
    assert next(ahead) == 1
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
    with pytest.raises(StopIteration):
        next(ahead)


def test_no_more_than_depth_items_are_made_in_advance() -> None:
    made = threading.Semaphore(0)
    count = 0

    def items() -> Generator[int, None, None]:
        nonlocal count
        while True:
            count += 1
            made.release()
            yield count

    ahead = ReadAhead(items(), depth=2)
    for _ in range(2):
        assert made.acquire(timeout=5)
    assert next(ahead) == 1
    assert made.acquire(timeout=5)
    ahead.close()
    assert count == 3


def test_closing_closes_the_items() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            closed.set()

    ahead = ReadAhead(items())
    next(ahead)
    ahead.close()
    ahead.close()
    assert closed.is_set()
