"""Reading ahead: one thread makes the next items while the caller works on the last one."""

from __future__ import annotations

import threading
from collections.abc import Generator
from queue import SimpleQueue
from typing import Generic, Self, TypeVar

Item = TypeVar("Item")


class _End:
    """No more items; `error` is why, when it was one."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


class ReadAhead(Generic[Item]):
    """Iterate over `items` with up to `depth` of them made in advance, in a thread.

    An exception of `items` is raised here, after the items before it. `close` ends the thread and closes
    `items`; so does the end of the items.
    """

    def __init__(self, items: Generator[Item, None, None], depth: int = 1) -> None:
        self._items = items
        self._ready: SimpleQueue[Item | _End] = SimpleQueue()
        self._slots: SimpleQueue[None] = SimpleQueue()  # a semaphore, at a fraction of its cost
        for _ in range(depth):
            self._slots.put(None)
        self._stopping = False
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="read-ahead", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Item:
        if self._ended:
            raise StopIteration
        item = self._ready.get()
        if not isinstance(item, _End):
            self._slots.put(None)
            return item
        self.close()
        if item.error is not None:
            raise item.error
        raise StopIteration

    def close(self) -> None:
        """End the thread and wait for it."""
        self._ended = self._stopping = True
        self._slots.put(None)
        self._thread.join()

    def _run(self) -> None:
        end = _End()
        try:
            while True:
                self._slots.get()
                if self._stopping:
                    break
                self._ready.put(next(self._items))
        except StopIteration:
            pass
        except BaseException as error:  # crosses over to the caller, whatever it is
            end = _End(error)
        finally:
            try:
                self._items.close()
            finally:
                self._ready.put(end)
