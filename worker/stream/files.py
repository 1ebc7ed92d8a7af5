"""What is known of a dataset's files over all passes: how they looked, where plain features lie in them."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.datasets.parquet import unavailable
from app.datasets.places import Place, S3Path
from app.datasets.schema import Dataset
from worker.stream.memory import Memory
from worker.stream.plain import Pages, PlainFile, find_pages

# Of plain rows that are read at once: what was read is still in the caches when it is used.
PIECE_BYTES = 2 << 20

UNKNOWN = -128  # of labels that are kept

Look = tuple[int, int | str]  # size, and time of the last change in ns or entity tag


class Files:
    """Made when the fingerprint was just found right: a file that looks different later has changed."""

    def __init__(self, dataset: Dataset, max_bytes: int = PIECE_BYTES) -> None:
        """max_bytes: of a piece of plain rows; of all labels, if they are to be kept."""
        self._dataset = dataset
        self._looks = [_pinned(file.path) for file in dataset.files]
        self._pages: dict[tuple[int, int], Pages | None] = {}
        features = dataset.features
        self.plain_width = 0  # bytes of a row of a binary column, else 0
        if features.layout == "binary" and isinstance(dataset.files[0].path, Path):
            self.plain_width = prod(features.shape) * np.dtype(features.dtype).itemsize
        self.piece_rows = max(1, min(PIECE_BYTES, max_bytes) // max(1, self.plain_width))
        self._memory = Memory(self.piece_rows * self.plain_width)
        keeps = self.plain_width and dataset.group is None and dataset.rows <= max_bytes
        self._labels_R = np.full(dataset.rows if keeps else 0, UNKNOWN, np.int8)

    def has_changed(self, file: int) -> bool:
        """Tell whether a file is gone, or looks different than at the start. Raises SourceUnavailable."""
        place = self._dataset.files[file]
        look = _look(place.path, place.name)
        return look is None or look != self._looks[file]

    def pages(self, file: int, row_group: int, footer: Callable[[], pq.FileMetaData]) -> Pages | None:
        """Return where the features of a row group lie plainly; None when they do not."""
        key = (file, row_group)
        if key not in self._pages:
            column = self._dataset.features.columns[0]
            self._pages[key] = find_pages(footer(), row_group, column, self.plain_width)
        return self._pages[key]

    def found(self, file: int, row_group: int) -> Pages:
        """Return where the features of a row group lie, when `pages` found that."""
        pages = self._pages[file, row_group]
        assert pages is not None, "only asked for what lies plainly"
        return pages

    def keep_labels(self, start: int, labels_R: Tensor) -> None:
        """Keep the labels of rows from `start` on: to decode them takes half as long as to copy the rows."""
        kept_R = self._labels_R[start : start + len(labels_R)]
        small_R = labels_R.numpy().astype(np.int8)
        if len(kept_R) and np.array_equal(small_R, labels_R.numpy()):
            kept_R[:] = small_R

    def kept_labels(self, start: int, stop: int) -> Tensor | None:
        """Return the labels of rows start .. stop - 1, int64 [R]; None when they are not all kept."""
        kept_R = self._labels_R[start:stop]
        if not len(kept_R) or (kept_R == UNKNOWN).any():
            return None
        return torch.from_numpy(kept_R.astype(np.int64))

    def open_plain(self, file: int) -> PlainFile:
        """Open a file whose features lie plainly, for the caller alone. Raises OSError."""
        path = self._dataset.files[file].path
        assert isinstance(path, Path), "plain bytes are read from local files only"
        return PlainFile(path, self.plain_width)

    def take_memory(self, num_bytes: int) -> NDArray[np.uint8]:
        """Return memory for rows: used again if it is for a piece, else new."""
        if num_bytes <= self._memory.num_bytes:
            return self._memory.take()[:num_bytes]
        return np.frombuffer(pa.allocate_buffer(num_bytes), np.uint8)


def _pinned(place: Place) -> Look | None:
    """How a file looked when its footer was read, as near as that is known."""
    if isinstance(place, S3Path):
        assert place.pinned is not None, "footers pin their objects"
        return place.pinned.st_size, place.pinned.etag
    return _look(place, place.name)


def _look(place: Place, name: str) -> Look | None:
    """How a file looks now; null when it is gone."""
    try:
        if isinstance(place, S3Path):
            found = place.stat()
            return found.st_size, found.etag
        status = place.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        if isinstance(place, S3Path):
            raise unavailable(error, name) from error
        return None
    return status.st_size, status.st_mtime_ns
