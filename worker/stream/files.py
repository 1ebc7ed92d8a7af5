"""What is known of a dataset's files over all passes: how they looked, where plain features lie in them."""

from __future__ import annotations

from math import prod

import numpy as np
import pyarrow.parquet as pq

from app.datasets.schema import Dataset
from worker.stream.plain import Pages, find_pages

Look = tuple[int, int]  # size, time of the last change in ns


class Files:
    """Made when the fingerprint was just found right: a file that looks different later has changed."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._looks = [self._look(file) for file in range(len(dataset.files))]
        self._pages: dict[tuple[int, int], Pages | None] = {}
        features = dataset.features
        self.plain_width = 0  # bytes of a row of a binary column, else 0
        if features.layout == "binary":
            self.plain_width = prod(features.shape) * np.dtype(features.dtype).itemsize

    def has_changed(self, file: int) -> bool:
        """Tell whether a file is gone, or has another size or time than at the start."""
        look = self._look(file)
        return look is None or look != self._looks[file]

    def pages(self, file: int, row_group: int, footer: pq.FileMetaData) -> Pages | None:
        """Return where the features of a row group lie plainly; None when they do not."""
        key = (file, row_group)
        if key not in self._pages:
            column = self._dataset.features.columns[0]
            self._pages[key] = find_pages(footer, row_group, column, self.plain_width)
        return self._pages[key]

    def _look(self, file: int) -> Look | None:
        try:
            found = self._dataset.files[file].path.stat()
        except OSError:
            return None
        return found.st_size, found.st_mtime_ns
