"""What can happen to the SQLite file: damage, replacement, a full disk; and its daily copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa

from app.database_file import BACKUP_EVERY_S, back_up, network_file_system, refuse_damaged
from app.db import Database
from app.errors import StorageDamaged, StorageFull, StorageUnavailable
from app.jobs.files import Paths
from app.jobs.queue import Queue
from app.migrate import migrate
from tests.factories import make_database, make_request


class Room(NamedTuple):
    free: int


def fill(database: Database, *, max_pages: int | None = None) -> None:
    """Leave the database no room to grow, or give it back."""
    with database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={max_pages or pages}")


def submit_until_full(queue: Queue) -> list[str]:
    made: list[str] = []
    for number in range(1000):
        made.append(str(queue.submit(make_request(name=f"job {number}"))[0].id))
    return made


def overwrite(path: Path, *, pages: slice) -> bytes:
    """Damage the file on the disk, its header left as it is."""
    with closing(sqlite3.connect(path)) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    content = bytearray(path.read_bytes())
    content[pages] = b"\xa5" * len(content[pages])
    path.write_bytes(content)
    return bytes(content)


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return make_database(tmp_path)


def test_a_whole_file_passes(database: Database, tmp_path: Path) -> None:
    assert database.file == tmp_path / "saimp.db"
    refuse_damaged(tmp_path / "saimp.db", tmp_path / "saimp-backup.db")


@pytest.mark.parametrize("pages", [slice(4096, 40_000), slice(0, 16)], ids=["pages", "header"])
def test_a_damaged_file_is_refused_with_the_way_out_and_not_written(
    database: Database, tmp_path: Path, pages: slice
) -> None:
    path, backup = tmp_path / "saimp.db", tmp_path / "saimp-backup.db"
    assert back_up(path, backup)
    database.dispose()
    content = overwrite(path, pages=pages)
    with pytest.raises(StorageDamaged, match=r"saimp\.db is damaged") as refused:
        migrate(f"sqlite:///{path}", Paths(tmp_path, tmp_path))
    assert "saimp-backup.db (made 2" in (refused.value.hint or "")
    assert path.read_bytes() == content


def test_what_is_read_from_a_damaged_page_is_a_named_error(database: Database, tmp_path: Path) -> None:
    Queue(database).submit(make_request())
    database.dispose()
    overwrite(tmp_path / "saimp.db", pages=slice(8192, None))
    with pytest.raises(StorageDamaged), database.reading() as connection:
        connection.exec_driver_sql("SELECT * FROM job, event").all()


def test_a_full_disk_is_named_and_nothing_is_half_written(database: Database) -> None:
    queue = Queue(database)
    fill(database)
    with pytest.raises(StorageFull, match="full"):
        submit_until_full(queue)
    accepted, _ = queue.page(limit=1000)
    fill(database, max_pages=1 << 30)
    queue.submit(make_request())
    assert len(queue.page(limit=1000)[0]) == len(accepted) + 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("SQLITE_FULL", StorageFull),
        ("SQLITE_IOERR_WRITE", StorageFull),
        ("SQLITE_IOERR_FSYNC", StorageUnavailable),
        ("SQLITE_CORRUPT_INDEX", StorageDamaged),
        ("SQLITE_BUSY", StorageUnavailable),
    ],
)
def test_what_the_disk_says_has_a_name(database: Database, code: str, kind: type[Exception]) -> None:
    failed = sqlite3.OperationalError("disk I/O error")
    failed.sqlite_errorname = code
    with pytest.raises(StorageUnavailable) as named, database.writing():
        raise sa.exc.OperationalError("COMMIT", None, failed)
    assert type(named.value) is kind


def test_a_file_that_was_removed_or_replaced_is_not_written(database: Database, tmp_path: Path) -> None:
    queue = Queue(database)
    kept = queue.submit(make_request())[0].id
    path, aside = tmp_path / "saimp.db", tmp_path / "aside.db"
    path.rename(aside)
    for _ in range(2):
        with pytest.raises(StorageDamaged, match="removed or replaced"):
            queue.submit(make_request())
    shutil.copy(aside, path)
    with pytest.raises(StorageDamaged, match="removed or replaced"):
        queue.get(kept)
    aside.replace(path)
    assert queue.get(kept).id == kept
    queue.submit(make_request())


def test_a_log_deleted_while_nobody_looked_loses_no_order(database: Database, tmp_path: Path) -> None:
    queue = Queue(database)
    checkpointed = queue.submit(make_request())[0].id
    with closing(sqlite3.connect(tmp_path / "saimp.db")) as file:
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    queue.submit(make_request())
    shutil.copy(tmp_path / "saimp.db", tmp_path / "alone.db")  # as after a power cut and an rm of -wal
    refuse_damaged(tmp_path / "alone.db", tmp_path / "saimp-backup.db")
    (tmp_path / "other").mkdir()
    (tmp_path / "alone.db").rename(tmp_path / "other" / "saimp.db")
    again = Queue(make_database(tmp_path / "other"))
    assert [row.id for row in again.page(limit=10)[0]] == [checkpointed]


def test_the_copy_is_whole_and_made_once_a_day(database: Database, tmp_path: Path) -> None:
    path, backup = tmp_path / "saimp.db", tmp_path / "saimp-backup.db"
    job_id = Queue(database).submit(make_request())[0].id
    assert back_up(path, backup)
    with closing(sqlite3.connect(backup)) as copy:
        assert copy.execute("SELECT id FROM job").fetchall() == [(job_id,)]
    assert not back_up(path, backup)
    yesterday = backup.stat().st_mtime - BACKUP_EVERY_S - 1
    os.utime(backup, (yesterday, yesterday))
    assert back_up(path, backup)
    assert sorted(p.name for p in tmp_path.glob("*backup*")) == ["saimp-backup.db"]


def test_without_room_there_is_no_copy(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: Room(free=1000))
    assert not back_up(tmp_path / "saimp.db", tmp_path / "saimp-backup.db")


def test_a_damaged_file_never_replaces_a_good_copy(database: Database, tmp_path: Path) -> None:
    path, backup = tmp_path / "saimp.db", tmp_path / "saimp-backup.db"
    assert back_up(path, backup)
    good = backup.read_bytes()
    os.utime(backup, (0, 0))
    database.dispose()
    overwrite(path, pages=slice(4096, 40_000))
    with pytest.raises(StorageDamaged):
        back_up(path, backup)
    assert backup.read_bytes() == good


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    lines: list[Any] = [
        "/dev/sda / ext4 rw 0 0",
        r"box:/vol /mnt/my\040share nfs4 rw 0 0",
        "/dev/sdb /mnt/my ext4 rw 0 0",
    ]
    mounts.write_text("\n".join(lines))
    assert network_file_system(Path("/mnt/my share/data/saimp.db"), mounts) == "nfs4"
    assert network_file_system(Path("/mnt/my/saimp.db"), mounts) is None
    assert network_file_system(Path("/x/saimp.db"), tmp_path / "none") is None
