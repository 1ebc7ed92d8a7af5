"""What can be wrong with a dataset. Each error names the file, what was found and what to do.

Messages name files relative to the data root; they never show a server path.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Self

from app.errors import InvalidData, Problem


class DataError(InvalidData):
    """The dataset cannot be used as it is."""

    pointer: str = "/data/path"

    def __init__(
        self,
        message: str | None = None,
        hint: str | None = None,
        *,
        pointer: str | None = None,
        problems: Sequence[Problem] = (),
    ) -> None:
        super().__init__(message, hint)
        self.pointer = pointer or type(self).pointer
        own = Problem(self.pointer, self.code, self.message, self.hint)
        self.problems: tuple[Problem, ...] = tuple(problems) or (own,)

    @classmethod
    def of(cls, faults: Sequence[DataError]) -> DataError:
        """Join several faults into the first of them, carrying every one as a problem."""
        first = faults[0]
        first.problems = tuple(problem for fault in faults for problem in fault.problems)
        return first

    def at(self, pointer: str) -> Self:
        """Point at another field of the request."""
        self.pointer = pointer
        self.problems = (Problem(pointer, self.code, self.message, self.hint),)
        return self


class PathOutsideDataRoot(DataError):
    """data.path must name something below the data root."""

    code = "path_outside_data_root"


class NotARegularFile(DataError):
    """Only regular files can be read."""

    code = "not_a_regular_file"


class NoFiles(DataError):
    """No Parquet file matches data.path."""

    code = "no_files"


class NoRows(DataError):
    """The dataset has no rows."""

    code = "no_rows"


class SourceUnavailable(DataError):
    """Where the data lie does not answer, or refuses."""

    status, code = 503, "source_unavailable"


class NotParquet(DataError):
    """A file is not a Parquet file."""

    code = "not_parquet"


class Truncated(DataError):
    """A Parquet file is cut short."""

    code = "truncated"


class CorruptFile(DataError):
    """A Parquet file cannot be decoded."""

    code = "corrupt_file"


class DataChanged(DataError):
    """A file changed while it was read."""

    code = "data_changed"


class UnsupportedFeature(DataError):
    """A file uses something this reader does not support."""

    code = "unsupported_feature"


class RowGroupTooLarge(DataError):
    """A part of a file would not fit in memory when it is decoded."""

    code = "row_group_too_large"


class BadColumnName(DataError):
    """A column's name cannot be used."""

    code = "bad_column_name"


class BadMetadata(DataError):
    """The dataset's own metadata (schema key `saimp`) are malformed."""

    code = "bad_metadata"


class SchemaMismatch(DataError):
    """The columns are not what the request expects."""

    code = "schema_mismatch"


class BadTimestamp(DataError):
    """A timestamp is missing, out of range or of another unit."""

    code = "bad_timestamp"
    pointer = "/data/timestamp"


class NotChronological(DataError):
    """Rows of a file go back in time."""

    code = "not_chronological"
    pointer = "/data/timestamp"


class FilesOverlap(DataError):
    """Files overlap in time."""

    code = "files_overlap"


class LabelOutOfRange(DataError):
    """A label is not an integer in 0..K-1."""

    code = "label_out_of_range"
    pointer = "/data/label"


class BadGroup(DataError):
    """A group value is missing, or there are more than 256."""

    code = "bad_group"
    pointer = "/data/group"


class EmptySplit(DataError):
    """A part of the split has no window."""

    code = "empty_split"
    pointer = "/data/split"


class TooManyFolds(DataError):
    """The rows cannot be cut into that many folds."""

    code = "too_many_folds"
    pointer = "/data/split"


class NoClassWeight(DataError):
    """A part of the split has a total class weight of 0."""

    code = "zero_class_weight"
    pointer = "/loss/class_weights"


class WrongClassWeights(DataError):
    """There must be one class weight for each class."""

    code = "class_weights_length"
    pointer = "/loss/class_weights"


class PreflightTimeout(Exception):
    """The data checks ran past their deadline."""


def check_deadline(deadline: float | None) -> None:
    """Raise PreflightTimeout past `deadline`, a time.monotonic()."""
    if deadline is not None and time.monotonic() > deadline:
        raise PreflightTimeout
