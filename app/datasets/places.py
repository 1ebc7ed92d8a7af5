"""Where files lie: in a folder of this machine, or in a bucket behind an S3 API.

`Root` is what `data.path` is below; `Place` is one file. An S3Path answers what a Path does, as far as
datasets ask: open, stat, name. Credentials come from the environment alone (AWS_ACCESS_KEY_ID and such);
region and endpoint from there too (AWS_REGION, AWS_ENDPOINT_URL), or from the query of the operator's URL.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias, TypeVar
from urllib.parse import parse_qsl, urlsplit

S3_SCHEME = "s3://"
# A request fails after CONNECT_S without a connection or SILENCE_S without a byte, and is tried again.
CONNECT_S, SILENCE_S, TRIES = 5, 10, 3
REQUESTS_AT_ONCE = 16

_AWS_ERROR = re.compile(r"AWS Error (\w+)( \(HTTP status \d+\))? during (\w+)")
_NO_URL = "{!r} is not a usable s3:// URL; it looks like s3://bucket/prefix"
_QUERY = ("region", "scheme", "endpoint_override")

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class S3Stat:
    """What tells one content of an object from another, without reading it."""

    st_size: int
    etag: str


@dataclass(frozen=True, slots=True)
class S3Path:
    """A bucket's prefix or object. key: "bucket/prefix/name"; url: what says how to reach the bucket.

    pinned: what the object was when it was first opened.
    """

    url: str
    key: str
    pinned: S3Stat | None = field(default=None, compare=False)

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
        return _bucket(self.url).open_input_file(self.key)

    def stat(self) -> S3Stat:
        """Ask for size and entity tag. Raises OSError."""
        with self.open() as file:
            about = file.metadata() or {}
            # Whoever gives no tag gives a time.
            tag = about.get("ETag") or about.get("Last-Modified") or b""
            return S3Stat(int(file.size()), tag.decode())

    def pin(self) -> S3Path:
        """Remember what the object is now. Raises OSError."""
        return replace(self, pinned=self.stat())

    def files(self) -> Iterator[tuple[S3Path, int]]:
        """List every object below, or this one, with its size. Raises OSError."""
        from pyarrow import fs  # noqa: PLC0415 - listing folders must not load pyarrow

        bucket = _bucket(self.url)
        own = bucket.get_file_info(self.key)
        if own.is_file:
            yield self, int(own.size)
            return
        for found in bucket.get_file_info(fs.FileSelector(self.key, allow_not_found=True, recursive=True)):
            if found.is_file:
                yield S3Path(self.url, found.path), int(found.size)


@dataclass(frozen=True, slots=True)
class Sources:
    """All that `data.path` may name: what is below a folder, and s3:// URLs below the allowed ones."""

    folder: Path
    buckets: tuple[S3Path, ...] = ()

    def of(self, path: str) -> tuple[Path | S3Path | None, str]:
        """Return the root that a path is below, and the rest of it; null when it is below none of them."""
        if not path.startswith(S3_SCHEME):
            return self.folder, path
        key = path.removeprefix(S3_SCHEME)
        for bucket in sorted(self.buckets, key=lambda bucket: len(bucket.key), reverse=True):
            if key == bucket.key or key.startswith(f"{bucket.key}/"):
                return bucket, key[len(bucket.key) :].lstrip("/") or "."
        return None, key


Root: TypeAlias = Path | S3Path | Sources
Place: TypeAlias = Path | S3Path


def s3_root(url: str) -> S3Path:
    """Read what the operator allows: s3://bucket/prefix, with ?region=, scheme= and endpoint_override=.

    Raises ValueError for what is no such URL, or carries credentials.
    """
    parts = urlsplit(url.strip())
    key = f"{parts.netloc}{parts.path}".strip("/")
    query = dict(parse_qsl(parts.query))
    if f"{parts.scheme}://" != S3_SCHEME or not parts.netloc or parts.fragment or "//" in key:
        raise ValueError(_NO_URL.format(url))
    if "@" in parts.netloc:
        raise ValueError("an s3:// URL holds no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    if unknown := sorted(query.keys() - set(_QUERY)):
        raise ValueError(f"an s3:// URL takes {', '.join(_QUERY)}, not {unknown[0]!r}")
    return S3Path(url.strip(), key)


def openable(place: Place) -> Any:
    """Return what pq.ParquetFile opens: the path of a local file, else the object itself."""
    return place if isinstance(place, Path) else place.open()


def aws_reason(error: Exception) -> str | None:
    """What the S3 client says went wrong, without keys and addresses; null when it is not of that kind."""
    found = _AWS_ERROR.search(str(error))
    return None if found is None else f"{found[1]}{found[2] or ''} during {found[3]}"


def each(
    function: Callable[[Item], Result], items: Iterable[Item], *, is_remote: bool
) -> Generator[Result, None, None]:
    """Map in order; requests to a bucket are many at once, for each of them waits."""
    if not is_remote:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(REQUESTS_AT_ONCE)
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)


@lru_cache(maxsize=16)
def _bucket(url: str) -> Any:
    """Return the file system behind an operator's URL."""
    from pyarrow import fs  # noqa: PLC0415 - the S3 client starts threads: only where it is used

    query = dict(parse_qsl(urlsplit(url).query))
    endpoint = query.get("endpoint_override") or os.environ.get(
        "AWS_ENDPOINT_URL_S3", os.environ.get("AWS_ENDPOINT_URL", "")
    )
    scheme, _, host = endpoint.rpartition("://")
    return fs.S3FileSystem(
        region=query.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION"),
        endpoint_override=host or None,
        scheme=query.get("scheme") or scheme or "https",
        connect_timeout=CONNECT_S,
        request_timeout=SILENCE_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
    )
