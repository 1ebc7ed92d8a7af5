"""Which files a `data.path` names: regular Parquet files below the data root, and nothing else."""

from __future__ import annotations

import difflib
import itertools
import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from app.datasets.errors import (
    NoFiles,
    NotARegularFile,
    PathOutsideDataRoot,
    SourceUnavailable,
    check_deadline,
)
from app.datasets.globs import Glob, is_glob
from app.datasets.places import S3_SCHEME, Place, Root, S3Path, Sources, aws_reason
from app.errors import shown

SUFFIXES = (".parquet", ".pq", ".parq")
MAX_FILES = 100_000
MAX_PARTS = 64  # names in one path

# Names that are compared to find out what was meant.
_MAX_COMPARED = 1000

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


def find_files(root: Root, pattern: str, *, deadline: float | None = None) -> tuple[FoundFile, ...]:
    """Resolve `data.path` to Parquet files below the data root, sorted by name.

    A folder means every Parquet file below it. Symbolic links to folders are followed where the path names
    them, not where a glob or a folder holds them.
    deadline: time.monotonic() after which PreflightTimeout is raised.
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
    files = (
        _in_folder(root.resolve(), segments, deadline)
        if isinstance(root, Path)
        else _in_bucket(root, segments)
    )
    for file in files:
        check_deadline(deadline)
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
        names = (child.name for child in folder.iterdir() if depth or not _is_ours(child.name))
        here = list(itertools.islice(names, _MAX_COMPARED))
        if not os.path.lexists(folder / name):
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
    return tuple(each_dataset(root))


def each_dataset(folder: Path, *, deadline: float | None = None) -> Iterator[DatasetEntry]:
    """List what `list_datasets` does of a folder, one by one. Raises PreflightTimeout past `deadline`."""
    home = folder.resolve()
    for child in sorted(home.iterdir()) if home.is_dir() else []:
        if _is_ours(child.name) or child.is_symlink():
            continue
        check_deadline(deadline)
        is_folder = child.is_dir()
        files = list(_parquet_below(home, child, deadline)) if is_folder else [child]
        sizes = [s.st_size for path in files if (s := _regular(path)) and path.suffix.lower() in SUFFIXES]
        if sizes:
            yield DatasetEntry(child.name, "folder" if is_folder else "file", len(sizes), sum(sizes))


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
    segments = [part for part in pattern.split("/") if part not in ("", ".")]
    if len(segments) > MAX_PARTS:
        raise NoFiles(
            f"{shown(pattern)!r} has {len(segments)} parts; a path has at most {MAX_PARTS}.",
            "`**` stands for any number of folders.",
        )
    return segments


def _in_folder(home: Path, segments: Sequence[str], deadline: float | None) -> Iterator[FoundFile]:
    for match in _matches(home, segments, deadline):
        for path in _parquet_below(home, match, deadline) if match.is_dir() else (match,):
            file = _checked(home, path)
            if file is not None:
                yield file


def _in_bucket(root: S3Path, segments: Sequence[str]) -> Iterator[FoundFile]:
    """What a path means in a folder, meant in a bucket: its names with slashes are its folders."""
    name = "/".join(segments)
    found = [file for file, _ in _objects(root, name) if _is_data(file.name, name)]
    if found or not is_glob(name):
        yield from found
        return
    # List below the part without wildcards only.
    plain, glob = _cut(segments)
    for file, _ in _objects(root, "/".join(plain)):
        if _is_data(file.name, "") and _is_match(glob, file.name.split("/")[len(plain) :]):
            yield file


def _cut(segments: Sequence[str]) -> tuple[Sequence[str], Glob]:
    """Cut a path where its wildcards begin."""
    depth = next(place for place, part in enumerate(segments) if is_glob(part))
    return segments[:depth], Glob(segments[depth:])


def _is_match(glob: Glob, names: Sequence[str]) -> bool:
    """Whether a glob names a file, or a folder that it is in."""
    places = glob.start
    for name in names:
        if glob.is_match(places):
            break
        places = glob.step(places, name)
    return glob.is_match(places)


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


def _matches(home: Path, segments: Sequence[str], deadline: float | None) -> Iterator[Path]:
    """What is at a path; else the folders and the files of data that it names as a glob."""
    literal = home.joinpath(*segments)
    if os.path.lexists(literal):
        yield literal
    elif is_glob("/".join(segments)):
        plain, glob = _cut(segments)
        folder = home.joinpath(*plain)
        _real(home, folder)
        yield from _globbed(home, folder, glob, deadline)


def _globbed(home: Path, top: Path, glob: Glob, deadline: float | None) -> Iterator[Path]:
    waiting = [(top, glob.start)]
    while waiting:
        folder, before = waiting.pop()
        if glob.is_match(before):
            yield folder  # with all there is below
            continue
        is_hidden = _is_ours if folder == home else _is_hidden
        for entry in _entries(folder):
            check_deadline(deadline)
            places = glob.step(before, entry.name)
            if not places or is_hidden(entry.name):
                continue
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                waiting.append((path, places))
            elif os.path.isdir(path):
                # A link: followed, two of them to "." would double the folders at each level.
                _real(home, path)
            elif glob.is_match(places) and path.suffix.lower() in SUFFIXES:
                yield path


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, by name; nothing in one that is none, or may not be read."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (OSError, ValueError):
        return []


def _parquet_below(home: Path, folder: Path, deadline: float | None = None) -> Iterator[Path]:
    _real(home, folder)
    for parent, folders, files in os.walk(folder, followlinks=False):
        check_deadline(deadline)
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
    if not os.path.exists(path):
        raise _nowhere(home, path)
    real = _real(home, path)
    if _is_ours(real.relative_to(home).parts[0]):
        raise NoFiles(f"{shown(name)!r} leads to files of the service, which are never data.", _RULE)
    if _regular(path) is None:
        raise NotARegularFile(
            f"{shown(name)!r} is not a regular file.", "Pipes, devices and sockets cannot be read."
        )
    return FoundFile(name, path)


def _real(home: Path, path: Path) -> Path:
    """Follow the links of a path, which must stay below the root."""
    try:
        real = path.resolve()
    except (OSError, RuntimeError) as error:
        raise _nowhere(home, path) from error
    if not real.is_relative_to(home):
        raise _outside(home, path)
    return real


def _nowhere(home: Path, path: Path) -> NotARegularFile:
    """Say that a link dangles, or leads to itself."""
    name = path.relative_to(home).as_posix()
    return NotARegularFile(f"{shown(name)!r} is a link that leads nowhere.", "Remove it.")


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
