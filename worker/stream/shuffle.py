"""Block shuffle: windows in time order fill a buffer, and come out of it in random order.

Buffer n holds windows n x S .. (n + 1) x S - 1 of the part, whatever the files, blocks and memory; its order
depends on (seed, epoch, n) alone. So any position is found by filling one buffer.
Shapes: S windows of the buffer, Q runs in it, B windows of a batch, n batches, R rows.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, pairwise

import numpy as np
import torch
from torch import Tensor

from worker.stream.batch import Batch
from worker.stream.windows import Ints

# Rows that are copied at once for several batches: a call costs more than a batch, and caches are small.
BYTES_AT_ONCE = 2 << 20

TimeOrdered = Callable[[int, int], Generator[Batch, None, None]]
"""Batches in time order, of a size, from a sample on."""


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How windows are permuted. buffer: windows permuted together; run: consecutive ones drawn together."""

    buffer: int
    run: int
    seed: int

    def order(self, epoch: int, buffer: int, num_windows: int) -> Ints:
        """Return the order in which a buffer's windows come, [S]: every one once."""
        num_runs = -(-num_windows // self.run)
        # Raw draws: numpy keeps the streams of its bit generators from version to version.
        draws_Q = np.random.Philox(np.random.SeedSequence([self.seed, epoch, buffer])).random_raw(num_runs)
        runs_Q = np.argsort(draws_Q, kind="stable")
        if self.run == 1:
            return runs_Q
        order_S = (runs_Q[:, None] * self.run + np.arange(self.run)).ravel()
        return order_S[order_S < num_windows]


def shuffled(
    in_time_order: TimeOrdered, total: int, shuffle: Shuffle, epoch: int, size: int, skip: int
) -> Generator[Batch, None, None]:
    """Yield batches of `size` from sample `skip` of the epoch's order on; one buffer is held at a time."""
    number, done = divmod(skip, shuffle.buffer)
    pending: Batch | None = None  # a batch that the end of a buffer cut short
    with closing(in_time_order(shuffle.buffer, number * shuffle.buffer)) as buffers:
        while (buffer := next(buffers, None)) is not None:
            order_S = shuffle.order(epoch, number, len(buffer))[done:]
            number, done = number + 1, 0
            is_last = number * shuffle.buffer >= total
            missing = 0 if pending is None else size - len(pending)
            batches = _drawn(buffer, order_S[missing:], size)
            if pending is not None:
                rest = next(_drawn(buffer, order_S[:missing], missing))
                batches = chain([_joined(pending, rest)], batches)
                pending = None
            for batch in batches:
                if len(batch) == size or is_last:
                    yield batch
                else:
                    pending = batch
            # Before the next one is made: two never lie in memory.
            del buffer, batches


def _drawn(buffer: Batch, order_S: Ints, size: int) -> Iterator[Batch]:
    """Yield the buffer's windows in this order as batches; the last may be short."""
    if not len(order_S):
        return
    whole = len(order_S) - len(order_S) % size
    window, row_bytes = buffer.window, buffer.rows_RF[0].nbytes
    at_once = max(1, BYTES_AT_ONCE // (size * window * row_bytes)) * size
    places_S = buffer.starts_B.numpy()[order_S]
    labels_S = buffer.labels_B[torch.from_numpy(order_S)]
    for first, last in pairwise([*range(0, whole, at_once), whole]):
        yield from _gathered(
            buffer.rows_RF, places_S[first:last].reshape(-1, size), labels_S[first:last], window
        )
    if whole < len(order_S):
        yield from _gathered(buffer.rows_RF, places_S[None, whole:], labels_S[whole:], window)


def _gathered(rows_RF: Tensor, places_nB: Ints, labels_N: Tensor, window: int) -> Iterator[Batch]:
    """Copy the rows of n batches in one call; each batch is a view of its own."""
    num_batches, size = places_nB.shape
    order_nB = np.argsort(places_nB, axis=1, kind="stable")
    sorted_nB = np.take_along_axis(places_nB, order_nB, axis=1)
    # As in union_rows, for n batches: each row once in a batch.
    fresh_nB = np.full_like(sorted_nB, window)
    np.minimum(np.diff(sorted_nB, axis=1), window, out=fresh_nB[:, 1:])
    ends_nB = np.cumsum(fresh_nB, axis=1)
    counts_n = ends_nB[:, -1]
    fresh_N = fresh_nB.ravel()
    stops_N = np.cumsum(fresh_N)
    rows_N = np.repeat(sorted_nB.ravel() + window - stops_N, fresh_N) + np.arange(stops_N[-1])
    starts_nB = np.empty_like(places_nB)
    np.put_along_axis(starts_nB, order_nB, ends_nB - window, axis=1)
    is_dense_n = (counts_n == size + window - 1) & (np.diff(starts_nB, axis=1) > 0).all(1)
    # numpy takes rows faster than index_select.
    picked_NF = torch.from_numpy(rows_RF.numpy().take(rows_N, axis=0))
    parts = zip(
        torch.split(picked_NF, counts_n.tolist()),
        torch.from_numpy(starts_nB).unbind(),
        labels_N.view(num_batches, size).unbind(),
        is_dense_n.tolist(),
        strict=True,
    )
    for part_RF, starts_B, labels_B, is_dense in parts:
        yield Batch(part_RF, starts_B, labels_B, window, is_dense)


def _joined(first: Batch, second: Batch) -> Batch:
    """Return the samples of both over the rows of both."""
    return Batch(
        torch.cat([first.rows_RF, second.rows_RF]),
        torch.cat([first.starts_B, second.starts_B + first.rows_RF.shape[0]]),
        torch.cat([first.labels_B, second.labels_B]),
        first.window,
        False,
    )
