"""Which files a `data.path` names: regular Parquet files below the data root, and nothing else."""

from __future__ import annotations

import difflib
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from app.datasets.errors import NoFiles, NotARegularFile, PathOutsideDataRoot, SourceUnavailable
from app.datasets.places import S3_SCHEME, Place, Root, S3Path, Sources, aws_reason, glob_pattern
from app.errors import shown

SUFFIXES = (".parquet", ".pq", ".parq")
MAX_FILES = 100_000
MAX_RECURSIVE = 4  # `**` in one glob

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|file:|[A-Za-z]:/")
_BUCKETS = "The operator names the buckets that jobs may read in SAIMP_S3_ROOTS."
_RULE = "Give a file, folder or glob relative to the data root, such as demo or btc/2025-*.parquet."


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A regular file below a root. name: relative to the root, POSIX."""

    name: str
    path: Place


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """Something directly below a root that can be a `data.path`."""

    path: str
    kind: str  # "file" | "folder"
    files: int
    size_bytes: int


def find_files(root: Root, pattern: str) -> tuple[FoundFile, ...]:
    """Resolve `data.path` to Parquet files below the data root, sorted by name.

    A folder means every Parquet file below it; symbolic links to folders inside it are not followed.
    Raises PathOutsideDataRoot, NotARegularFile, NoFiles, SourceUnavailable.
    """
    wanted = pattern
    if isinstance(root, Sources):
        below, pattern = root.of(pattern)
        if below is None:
            raise PathOutsideDataRoot(
                f"{shown(wanted)!r} is not below a bucket this service may read.", _BUCKETS
            )
        root = below
    segments = _segments(pattern)
    name = "/".join(segments)
    if segments and _is_ours(segments[0]):
        raise NoFiles(f"{shown(name)!r} belongs to the service and is never data.", _RULE)
    found: dict[str, FoundFile] = {}
    for file in _in_folder(root.resolve(), name) if isinstance(root, Path) else _in_bucket(root, name):
        found[file.name] = file
        if len(found) > MAX_FILES:
            raise NoFiles(f"{shown(wanted)!r} matches more than {MAX_FILES} files.", "Narrow the path.")
    if not found:
        raise NoFiles(
            f"No Parquet file matches {shown(wanted)!r}"
            f"{' below the data root' if isinstance(root, Path) else ''}.",
            _did_you_mean(root, segments) + "GET /datasets lists what is there; files end in .parquet.",
        )
    return tuple(found[key] for key in sorted(found))


def _did_you_mean(root: Root, segments: Sequence[str]) -> str:
    """Name what was probably meant by the first part of a path that is not there; else nothing."""
    folder = root
    for depth, name in enumerate(segments):
        if not isinstance(folder, Path) or folder.is_symlink() or not folder.is_dir():
            break
        here = [child.name for child in folder.iterdir() if depth or not _is_ours(child.name)]
        if name not in here:
            close = difflib.get_close_matches(name, here, n=1)
            return f"Did you mean {shown('/'.join((*segments[:depth], close[0])))!r}? " if close else ""
        folder = folder / name
    return ""


def list_datasets(root: Root) -> tuple[DatasetEntry, ...]:
    """List the files and folders directly below a root that hold Parquet files, by name.

    Raises SourceUnavailable.
    """
    if isinstance(root, Sources):
        buckets = [entry for bucket in root.buckets for entry in list_bucket(bucket)]
        return (*list_datasets(root.folder), *buckets)
    if isinstance(root, S3Path):
        return _entries_of_bucket(root)
    home = root.resolve()
    entries = []
    for child in sorted(home.iterdir()) if home.is_dir() else []:
        if _is_ours(child.name) or child.is_symlink():
            continue
        is_folder = child.is_dir()
        files = list(_parquet_below(home, child)) if is_folder else [child]
        sizes = [s.st_size for path in files if (s := _regular(path)) and path.suffix.lower() in SUFFIXES]
        if sizes:
            kind = "folder" if is_folder else "file"
            entries.append(DatasetEntry(child.name, kind, len(sizes), sum(sizes)))
    return tuple(entries)


def list_bucket(bucket: S3Path) -> tuple[DatasetEntry, ...]:
    """List an allowed bucket by the URLs that are its `data.path`. Raises SourceUnavailable."""
    return tuple(
        replace(entry, path=f"{S3_SCHEME}{bucket.key}/{entry.path}") for entry in _entries_of_bucket(bucket)
    )


def _segments(pattern: str) -> list[str]:
    """Split a path after refusing every way out of the root."""
    for text in {pattern, unquote(pattern)}:
        parts = re.split(r"[/\\;]", text)
        if (
            not text.isprintable()
            or "\\" in text
            or text.startswith(("/", "~"))
            or _SCHEME.match(text)
            or ".." in (part.strip() for part in parts)
        ):
            raise PathOutsideDataRoot(f"{shown(pattern)!r} is not a path below the data root.", _RULE)
    if pattern.count("**") > MAX_RECURSIVE:
        raise NoFiles(f"{shown(pattern)!r} has more than {MAX_RECURSIVE} `**`.", "Narrow the glob.")
    return [part for part in pattern.split("/") if part not in ("", ".")]


def _in_folder(home: Path, name: str) -> Iterator[FoundFile]:
    for match in _matches(home, name):
        for path in _parquet_below(home, match) if match.is_dir() else (match,):
            file = _checked(home, path)
            if file is not None:
                yield file


def _in_bucket(root: S3Path, name: str) -> Iterator[FoundFile]:
    """What a path means in a folder, meant in a bucket: its names with slashes are its folders."""
    found = [file for file, _ in _objects(root, name) if _is_data(file.name, name)]
    if found or not any(c in name for c in "*?["):
        yield from found
        return
    # List below the part without wildcards only.
    plain = name.split("/")[: next(i for i, part in enumerate(name.split("/")) if re.search(r"[*?\[]", part))]
    try:
        pattern = glob_pattern(name)
    except re.error as error:
        raise NoFiles(f"{shown(name)!r} is not a usable path or glob.", _RULE) from error
    for file, _ in _objects(root, "/".join(plain)):
        parts = file.name.split("/")
        # A pattern that ends in `**` names folders only.
        folders = ["/".join(parts[:size]) + "/" for size in range(1, len(parts))]
        names = [*folders, *(folder[:-1] for folder in folders), file.name]
        if _is_data(file.name, "") and any(pattern.fullmatch(one) for one in names):
            yield file


def _entries_of_bucket(root: S3Path) -> tuple[DatasetEntry, ...]:
    sizes: dict[tuple[str, str], list[int]] = {}
    for file, size in _objects(root, ""):
        first, _, rest = file.name.partition("/")
        if _is_data(file.name, ""):
            sizes.setdefault((first, "folder" if rest else "file"), []).append(size)
    return tuple(
        DatasetEntry(first, kind, len(files), sum(files)) for (first, kind), files in sorted(sizes.items())
    )


def _objects(root: S3Path, name: str) -> Iterator[tuple[FoundFile, int]]:
    """Every object at or below a name, with its size. Raises SourceUnavailable."""
    try:
        for path, size in (root / name).files():
            yield FoundFile(path.key.removeprefix(root.key).lstrip("/"), path), size
    except OSError as error:
        raise SourceUnavailable(
            f"The bucket {shown(root.key)!r} cannot be listed: {aws_reason(error) or 'no answer'}.",
            "Check credentials, region and endpoint of the service, then try again.",
        ) from error


def _is_data(name: str, wanted: str) -> bool:
    """Whether an object is data: not ours, not hidden, and Parquet by its name unless named itself."""
    parts = name.split("/")
    if _is_ours(parts[0]) or any(_is_hidden(part) for part in parts):
        return False
    return name == wanted or name.lower().endswith(SUFFIXES)


def _is_ours(first: str) -> bool:
    """Whether an entry directly below the root belongs to the service, or is hidden."""
    return first == "jobs" or first.startswith((".", "saimp"))


def _matches(home: Path, name: str) -> Iterator[Path]:
    literal = home / name
    try:
        if os.path.lexists(literal):
            yield literal
            return
        if any(c in name for c in "*?["):
            # A glob names data, not everything beside it: folders, and files by suffix.
            for path in home.glob(name):
                if path.suffix.lower() in SUFFIXES or path.is_dir():
                    yield path
    except (OSError, ValueError) as error:  # a name too long, or a malformed glob
        raise NoFiles(f"{shown(name)!r} is not a usable path or glob.", _RULE) from error


def _parquet_below(home: Path, folder: Path) -> Iterator[Path]:
    resolved = folder.resolve()
    if not resolved.is_relative_to(home):
        raise _outside(home, folder)
    for parent, folders, files in os.walk(folder, followlinks=False):
        at_root = Path(parent).resolve() == home
        hidden = _is_ours if at_root else _is_hidden
        folders[:] = sorted(name for name in folders if not hidden(name))
        for name in sorted(files):
            if not hidden(name) and Path(name).suffix.lower() in SUFFIXES:
                yield Path(parent) / name


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _checked(home: Path, path: Path) -> FoundFile | None:
    """Accept a regular file whose real place is below the root; None for what is never data."""
    name = path.relative_to(home).as_posix()
    parts = path.relative_to(home).parts
    if _is_ours(parts[0]) or any(_is_hidden(part) for part in parts):
        return None
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a dangling link, or a loop of links
        raise NotARegularFile(f"{shown(name)!r} is a link that leads nowhere.", "Remove it.") from error
    if not real.is_relative_to(home):
        raise _outside(home, path)
    if _is_ours(real.relative_to(home).parts[0]):
        raise NoFiles(f"{shown(name)!r} leads to files of the service, which are never data.", _RULE)
    if _regular(path) is None:
        raise NotARegularFile(
            f"{shown(name)!r} is not a regular file.", "Pipes, devices and sockets cannot be read."
        )
    return FoundFile(name, path)


def _regular(path: Path) -> os.stat_result | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _outside(home: Path, path: Path) -> PathOutsideDataRoot:
    name = path.relative_to(home).as_posix()
    return PathOutsideDataRoot(
        f"{shown(name)!r} leads out of the data root.", "Copy the files below the data root."
    )
