"""Where files lie: in a folder of this machine, or in a bucket behind an S3 API.

`Root` is what `data.path` is below; `Place` is one file. An S3Path answers what a Path does, as far as
datasets ask: open, stat, name. Credentials, region and endpoint come from the environment, as everywhere
(AWS_ACCESS_KEY_ID, AWS_REGION, AWS_ENDPOINT_URL), or from the URL's query.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

S3_SCHEME = "s3://"
_NO_URL = "not a usable s3:// URL; it looks like s3://bucket/prefix"
_GLOB = {"*": "[^/]*", "?": "[^/]"}


@dataclass(frozen=True, slots=True)
class S3Stat:
    """What is known of an object without reading it; names as of os.stat_result."""

    st_size: int
    st_mtime_ns: int


@dataclass(frozen=True, slots=True)
class S3Path:
    """A bucket's prefix or object. key: "bucket/prefix/name"; url: what says how to reach the bucket."""

    url: str
    key: str

    def __str__(self) -> str:
        return self.key

    @property
    def name(self) -> str:
        return PurePosixPath(self.key).name

    @property
    def parent(self) -> S3Path:
        return S3Path(self.url, str(PurePosixPath(self.key).parent))

    def resolve(self) -> S3Path:
        """Buckets have no links."""
        return self

    def __truediv__(self, name: str) -> S3Path:
        return S3Path(self.url, f"{self.key}/{name}" if name else self.key)

    def open(self, mode: str = "rb") -> Any:
        """Open for reading at any place. Raises OSError."""
        assert mode == "rb"
        return _bucket(self.url)[0].open_input_file(self.key)

    def stat(self) -> S3Stat:
        """Ask for size and time. Raises OSError."""
        found = _bucket(self.url)[0].get_file_info(self.key)
        if not found.is_file:
            raise FileNotFoundError(self.key)
        return S3Stat(int(found.size), int(found.mtime_ns or 0))

    def files(self) -> Iterator[tuple[S3Path, S3Stat]]:
        """List every object below, or this one. Raises OSError."""
        from pyarrow import fs  # noqa: PLC0415 - listing folders must not load pyarrow

        bucket = _bucket(self.url)[0]
        own = bucket.get_file_info(self.key)
        if own.is_file:
            yield self, S3Stat(int(own.size), int(own.mtime_ns or 0))
            return
        for found in bucket.get_file_info(fs.FileSelector(self.key, allow_not_found=True, recursive=True)):
            if found.is_file:
                yield S3Path(self.url, found.path), S3Stat(int(found.size), int(found.mtime_ns or 0))


Root: TypeAlias = Path | S3Path
Place: TypeAlias = Path | S3Path


def root_at(text: str | Path) -> Root:
    """Read a setting: a folder, or s3://bucket/prefix (with ?region=, endpoint_override=, scheme=)."""
    if str(text).startswith(S3_SCHEME):
        return S3Path(str(text), _bucket(str(text))[1])
    return Path(text)


def opened(place: Place) -> Any:
    """Return what pq.ParquetFile opens: the path of a local file, else the object itself."""
    return place if isinstance(place, Path) else place.open()


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a glob over keys as pathlib reads it: `*` stays inside a name, `**` crosses folders."""
    parts = []
    for segment in pattern.split("/"):
        if segment == "**":
            parts.append("(?:[^/]+/)*")
        else:
            tokens = re.findall(r"\[!?[^\]]+\]|.", segment)
            parts.append("".join(_GLOB.get(token) or _literal(token) for token in tokens) + "/")
    return re.compile("".join(parts).removesuffix("/"))


def _literal(token: str) -> str:
    if len(token) == 1:
        return re.escape(token)
    negated = token[1] == "!"
    inside = token[2 if negated else 1 : -1].replace("\\", r"\\").replace("^", r"\^")
    return f"[{'^' if negated else ''}{inside}]"


@lru_cache(maxsize=4)
def _bucket(url: str) -> tuple[Any, str]:
    """Return the file system of an S3 URL and the key in it. Raises ValueError for one that is none."""
    from pyarrow import fs  # noqa: PLC0415 - the S3 client starts threads: only where it is used

    try:
        system, key = fs.FileSystem.from_uri(url)
    except (OSError, ValueError) as error:
        raise ValueError(_NO_URL) from error
    if not key.strip("/"):
        raise ValueError(_NO_URL)
    return system, key.rstrip("/")
