"""What data.path may name: nothing outside the data root, nothing of the service, only regular files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.datasets import catalog
from app.datasets.catalog import DatasetEntry, each_dataset, find_files, list_datasets
from app.datasets.errors import DataError, PreflightTimeout
from tests.app.datasets.make import table, write


def names(root: Path, pattern: str) -> list[str]:
    return [file.name for file in find_files(root, pattern)]


def refusal(root: Path, pattern: str) -> DataError:
    with pytest.raises(DataError) as caught:
        find_files(root, pattern)
    assert str(root.resolve()) not in caught.value.message
    assert caught.value.problems[0].pointer == "/data/path"
    return caught.value


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    for name in ("one.parquet", "btc/2024-01.parquet", "btc/2025-01.parquet", "btc/old/2020.PARQUET"):
        write(root, name, table(5))
    (root / "btc/notes.txt").write_text("not data")
    return root


def test_a_file_a_folder_and_a_glob_are_resolved(root: Path) -> None:
    assert names(root, "one.parquet") == ["one.parquet"]
    assert names(root, "btc") == ["btc/2024-01.parquet", "btc/2025-01.parquet", "btc/old/2020.PARQUET"]
    assert names(root, "./btc/") == names(root, "btc")
    assert names(root, "btc/2025-*.parquet") == ["btc/2025-01.parquet"]
    assert names(root, "btc/*") == names(root, "btc")
    assert names(root, "**/2024*") == ["btc/2024-01.parquet"]
    assert len(names(root, ".")) == 4


def test_a_file_is_found_once_however_often_it_matches(root: Path) -> None:
    assert names(root, "b*/**/*") == names(root, "btc")


OUTSIDE = [
    "../etc",
    "btc/../../x",
    "/etc/passwd",
    "~/x",
    "file:///etc/passwd",
    "s3://bucket/key",
    "C:/x",
    "..\\x",
    "btc\\x.parquet",
    "%2e%2e/x",
    "%2e%2e%2fx",
    "x/;../y",
    "..;/x",
    "a\0b",
    "a\nb",
    "%00",
]


@pytest.mark.parametrize("pattern", OUTSIDE)
def test_every_way_out_of_the_root_is_refused(root: Path, pattern: str) -> None:
    assert refusal(root, pattern).code == "path_outside_data_root"


@pytest.mark.parametrize(
    "pattern", ["nothing", "btc/2030-*.parquet", "#", "btc/[", "x" * 1000, "*/" * 500, "x/" * 65]
)
def test_what_matches_nothing_is_named(root: Path, pattern: str) -> None:
    assert refusal(root, pattern).code == "no_files"


def test_an_empty_folder_has_no_files(root: Path) -> None:
    (root / "empty").mkdir()
    error = refusal(root, "empty")
    assert error.code == "no_files"
    assert "'empty'" in error.message


@pytest.mark.parametrize(
    "name", ["jobs/1/x.parquet", "saimp_best.parquet", "saimp/x.parquet", ".hidden/x.parquet"]
)
def test_what_belongs_to_the_service_is_never_data(root: Path, name: str) -> None:
    write(root, name, table(5))
    assert refusal(root, name).code == "no_files"
    assert len(names(root, ".")) == 4
    assert len(names(root, "**/*")) == 4


def test_the_same_names_deeper_down_are_data_but_hidden_ones_are_not(root: Path) -> None:
    for name in ("eth/jobs/a.parquet", "eth/saimp.parquet", "eth/.tmp/b.parquet", "eth/.c.parquet"):
        write(root, name, table(5))
    assert names(root, "eth") == ["eth/jobs/a.parquet", "eth/saimp.parquet"]


def test_a_link_out_of_the_root_is_refused_wherever_it_is_met(root: Path, tmp_path: Path) -> None:
    write(tmp_path, "secret/x.parquet", table(5))
    (root / "link.parquet").symlink_to(tmp_path / "secret/x.parquet")
    (root / "folder").symlink_to(tmp_path / "secret")
    for pattern in ("link.parquet", "*.parquet", "folder", "folder/x.parquet", "fold*/*"):
        assert refusal(root, pattern).code == "path_outside_data_root"


def test_a_link_inside_the_root_is_followed_but_not_into_the_service(root: Path) -> None:
    (root / "latest.parquet").symlink_to("btc/2025-01.parquet")
    (root / "newest").symlink_to("btc")
    write(root, "jobs/x.parquet", table(5))
    (root / "sneaky.parquet").symlink_to("jobs/x.parquet")
    assert names(root, "latest.parquet") == ["latest.parquet"]
    assert "newest/2024-01.parquet" in names(root, "newest")
    assert refusal(root, "sneaky.parquet").code == "no_files"


def test_a_loop_of_folders_ends(root: Path) -> None:
    (root / "btc/again").symlink_to(root / "btc")
    assert len(names(root, "btc")) == 3


@pytest.mark.parametrize("pattern", ["b*", "*/*", "**/*", "*/**", "**/" * 9 + "*"])
def test_a_glob_follows_no_links_to_folders(root: Path, pattern: str) -> None:
    before = names(root, pattern)
    (root / "btc/again").symlink_to(".")
    (root / "more").symlink_to("btc")
    assert names(root, pattern) == before
    assert refusal(root, "*/again/*").code == "no_files"
    assert len(names(root, "btc/again/*")) == 3, "the path names it"


def test_links_in_a_circle_are_walked_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (root / "btc" / name).symlink_to(".")
    looked: list[Path] = []
    entries = catalog._entries

    def look(folder: Path) -> list[os.DirEntry[str]]:
        looked.append(folder)
        return entries(folder)

    monkeypatch.setattr(catalog, "_entries", look)
    assert refusal(root, "btc" + "/*" * 40).code == "no_files"
    assert refusal(root, "**/" * 40 + "x").code == "no_files"
    assert len(looked) == 2 + 3, "each folder once a pattern"


@pytest.mark.parametrize("pattern", [".", "btc", "**/*", "*/*.parquet"])
def test_the_deadline_holds_inside_the_walk(root: Path, pattern: str) -> None:
    with pytest.raises(PreflightTimeout):
        find_files(root, pattern, deadline=0.0)
    with pytest.raises(PreflightTimeout):
        list(each_dataset(root, deadline=0.0))


def test_pipes_and_dangling_links_are_no_regular_files(root: Path) -> None:
    os.mkfifo(root / "pipe.parquet")
    (root / "gone.parquet").symlink_to("nowhere")
    (root / "self.parquet").symlink_to("self.parquet")
    for pattern in ("pipe.parquet", "gone.parquet", "self.parquet"):
        assert refusal(root, pattern).code == "not_a_regular_file"


@pytest.mark.parametrize("pattern", ["*", "btc/*", "**/*", "btc/loop/*", "btc/loop", "btc/l*/*"])
def test_links_that_lead_to_each_other_are_no_data(root: Path, pattern: str) -> None:
    before = names(root, "*")
    (root / "btc/loop").symlink_to("pool")
    (root / "btc/pool").symlink_to("loop")
    if "loop" in pattern:
        assert refusal(root, pattern).code == "not_a_regular_file"
    elif pattern == "btc/l*/*":
        assert refusal(root, pattern).code == "no_files"
    else:
        assert set(names(root, pattern)) <= set(before)


def test_a_root_that_is_not_there_has_no_files(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent", "x").code == "no_files"
    assert list_datasets(tmp_path / "absent") == ()


def test_datasets_are_the_folders_and_files_of_the_root(root: Path) -> None:
    write(root, "jobs/x.parquet", table(5))
    (root / "saimp.db").write_bytes(b"")
    (root / "logs").mkdir()
    found = list_datasets(root)
    assert [(entry.path, entry.kind, entry.files) for entry in found] == [
        ("btc", "folder", 3),
        ("one.parquet", "file", 1),
    ]
    assert found[1] == DatasetEntry("one.parquet", "file", 1, (root / "one.parquet").stat().st_size)


@pytest.mark.parametrize(
    ("pattern", "meant"),
    [
        ("btcc", "btc"),
        ("btc/2024-02.parquet", "btc/2024-01.parquet"),
        ("bct/*.parquet", "btc"),
        ("one.parq", "one.parquet"),
    ],
)
def test_a_path_that_is_nearly_right_is_told_what_was_meant(root: Path, pattern: str, meant: str) -> None:
    assert (refusal(root, pattern).hint or "").startswith(f"Did you mean {meant!r}? GET /datasets")


def test_a_path_like_no_other_is_told_where_to_look(root: Path) -> None:
    assert (refusal(root, "gold").hint or "").startswith("GET /datasets")


def test_what_lies_outside_is_never_named(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").mkdir()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "way").symlink_to(tmp_path / "outside")
    assert "secret" not in str(refusal(tmp_path / "root", "way/secre").hint)
