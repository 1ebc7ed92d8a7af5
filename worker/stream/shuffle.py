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
from worker.stream.memory import Memory
from worker.stream.windows import Ints

# Of the rows that are copied at once, for several batches: they are still in the caches when they are used.
BYTES_AT_ONCE = 1 << 20

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
    memory: Memory | None = None
    pending: Batch | None = None  # a batch that the end of a buffer cut short
    with closing(in_time_order(shuffle.buffer, number * shuffle.buffer)) as buffers:
        while (buffer := next(buffers, None)) is not None:
            if memory is None:
                batch_bytes = size * buffer.window * buffer.rows_RF[0].nbytes
                memory = Memory(max(1, BYTES_AT_ONCE // batch_bytes) * batch_bytes)
            order_S = shuffle.order(epoch, number, len(buffer))[done:]
            number, done = number + 1, 0
            is_last = number * shuffle.buffer >= total
            missing = 0 if pending is None else size - len(pending)
            batches = _drawn(buffer, order_S[missing:], size, memory)
            if pending is not None:
                rest = next(_drawn(buffer, order_S[:missing], missing, memory))
                batches = chain([_joined(pending, rest)], batches)
                pending = None
            for batch in batches:
                if len(batch) == size or is_last:
                    yield batch
                else:
                    pending = batch
            # Before the next one is made: two never lie in memory.
            del buffer, batches


def _drawn(buffer: Batch, order_S: Ints, size: int, memory: Memory) -> Iterator[Batch]:
    """Yield the buffer's windows in this order as batches; the last may be short."""
    places_S = buffer.starts_B.numpy()[order_S]
    labels_S = buffer.labels_B[torch.from_numpy(order_S)]
    whole = len(order_S) - len(order_S) % size
    for part, columns in ((slice(0, whole), size), (slice(whole, None), max(1, len(order_S) - whole))):
        if len(places_S[part]):
            places_nB, labels_nB = places_S[part].reshape(-1, columns), labels_S[part].view(-1, columns)
            yield from _gathered(buffer.rows_RF, places_nB, labels_nB, buffer.window, memory)


def _gathered(
    rows_RF: Tensor, places_nB: Ints, labels_nB: Tensor, window: int, memory: Memory
) -> Iterator[Batch]:
    """Yield n batches of the windows at these places, each row once in a batch, as in union_rows."""
    order_nB = np.argsort(places_nB, axis=1, kind="stable")
    sorted_nB = np.take_along_axis(places_nB, order_nB, axis=1)
    fresh_nB = np.full_like(sorted_nB, window)
    np.minimum(np.diff(sorted_nB, axis=1), window, out=fresh_nB[:, 1:])
    ends_nB = np.cumsum(fresh_nB, axis=1)
    starts_nB = np.empty_like(places_nB)
    np.put_along_axis(starts_nB, order_nB, ends_nB - window, axis=1)
    counts_n = ends_nB[:, -1]
    num_batches, size = places_nB.shape
    is_dense_n = (counts_n == size + window - 1) & (np.diff(starts_nB, axis=1) > 0).all(1)

    rows_RE = rows_RF.flatten(1).numpy()
    at_once = max(1, memory.num_bytes // (size * window * rows_RE[0].nbytes))
    # Windows that overlap lie side by side in the source as in the batch: one copy for all of them.
    heads = np.flatnonzero(fresh_nB == window)
    tails = np.append(heads[1:], fresh_nB.size) - 1
    sources_N, stops_N = sorted_nB.ravel(), np.cumsum(fresh_nB)
    before_n = np.cumsum(counts_n) - counts_n
    base = before_n[heads // size // at_once * at_once]  # rows before those that are copied at once
    copies = list(
        zip(
            sources_N[heads].tolist(),
            (sources_N[tails] + window).tolist(),
            (stops_N[heads] - window - base).tolist(),
            (stops_N[tails] - base).tolist(),
            strict=True,
        )
    )
    firsts = range(0, num_batches, at_once)
    borders = [*np.searchsorted(heads, np.array(firsts) * size).tolist(), len(copies)]
    starts, labels = torch.from_numpy(starts_nB).unbind(), labels_nB.unbind()
    counts, is_dense = counts_n.tolist(), is_dense_n.tolist()
    for first, (begin, end) in zip(firsts, pairwise(borders), strict=True):
        picked_RE = memory.take().view(np.float32).reshape(-1, rows_RE.shape[1])
        for low, high, at, stop in copies[begin:end]:
            picked_RE[at:stop] = rows_RE[low:high]
        picked_RF = torch.from_numpy(picked_RE).view(-1, *rows_RF.shape[1:])
        at = 0
        for batch in range(first, min(first + at_once, num_batches)):
            part_RF = picked_RF[at : at + counts[batch]]
            at += counts[batch]
            yield Batch(part_RF, starts[batch], labels[batch], window, is_dense[batch])


def _joined(first: Batch, second: Batch) -> Batch:
    """Return the samples of both over the rows of both."""
    return Batch(
        torch.cat([first.rows_RF, second.rows_RF]),
        torch.cat([first.starts_B, second.starts_B + first.rows_RF.shape[0]]),
        torch.cat([first.labels_B, second.labels_B]),
        first.window,
        False,
    )
