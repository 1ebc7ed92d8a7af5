"""Names of contents in 64 bits, and samples of them that keep every copy of what they keep.

Shapes: N rows, W words of a row, T rows of a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Ints = NDArray[np.int64]

_BASE = 0x9E3779B97F4A7C15  # odd, so it has an inverse modulo 2^64
_LOW = np.uint64(0xFFFFFFFF)


def row_hashes(values_NE: NDArray[np.generic]) -> Words:
    """Name the content of each row, [N]; equal bytes have equal names.

    NH: the sum of products of keyed 32-bit halves. Source: Black et al., UMAC (CRYPTO 1999), 2.
    """
    plain = np.ascontiguousarray(values_NE)
    bytes_NB = plain.view(np.uint8).reshape(len(plain), -1)
    missing = -bytes_NB.shape[1] % 8
    if missing:
        bytes_NB = np.pad(bytes_NB, ((0, 0), (0, missing)))
    words_NW = bytes_NB.view("<u8")
    keys = mixed(np.arange(2 * words_NW.shape[1], dtype=np.uint64))
    low, high = keys[::2] & _LOW, keys[1::2] & _LOW
    products = ((words_NW & _LOW) + low) * ((words_NW >> np.uint64(32)) + high)
    return mixed(products.sum(axis=1, dtype=np.uint64))


def window_hashes(hashes_N: Words, window: int) -> Words:
    """Name the content of each T consecutive rows, in order, [N - T + 1]."""
    num = len(hashes_N)
    powers = _powers(_BASE, num)
    inverse = _powers(pow(_BASE, -1, 2**64), num)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(hashes_N * inverse, dtype=np.uint64)])
    return mixed((sums[window:] - sums[:-window]) * powers[window - 1 :])


def mixed(values: Words) -> Words:
    """Spread a number over 64 bits. Source: Steele et al., SplitMix (OOPSLA 2014)."""
    values = (values + np.uint64(_BASE)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _powers(base: int, num: int) -> Words:
    factors = np.full(num, base, dtype=np.uint64)
    factors[:1] = 1
    return np.cumprod(factors, dtype=np.uint64)


class HashSample:
    """All occurrences of those contents whose name is below a threshold, which falls until they fit.

    A copy has its original's name, so both are kept or neither: among n copied rows of N about
    n x min(1, capacity / N) are found.
    """

    def __init__(self, capacity: int, num_columns: int) -> None:
        self._capacity = capacity
        self._pieces: list[Ints] = []
        self._names: list[Words] = []
        self._num_columns, self._held = num_columns, 0
        self._limit = np.uint64(2**64 - 1)

    @property
    def share(self) -> float:
        """The share of all contents that is kept."""
        return (float(self._limit) + 1) / 2.0**64

    def add(self, names_N: Words, *columns_N: Ints) -> None:
        """Offer N contents with what is to be known of each."""
        kept = names_N <= self._limit
        if not kept.any():
            return
        self._names.append(names_N[kept])
        self._pieces.append(np.stack([column[kept] for column in columns_N]).astype(np.int64))
        self._held += int(np.count_nonzero(kept))
        while self._held > self._capacity:
            self._limit = np.uint64(int(self._limit) // 2)
            names, columns = self.take()
            kept = names <= self._limit
            self._names, self._pieces = [names[kept]], [columns[:, kept]]
            self._held = int(np.count_nonzero(kept))

    def take(self) -> tuple[Words, Ints]:
        """Return the names [M] and their columns [C, M]."""
        if not self._names:
            return np.empty(0, np.uint64), np.empty((self._num_columns, 0), np.int64)
        return np.concatenate(self._names), np.concatenate(self._pieces, axis=1)
