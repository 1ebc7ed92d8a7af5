"""Datasets in a bucket, behind a real S3 API on loopback, are those of a folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.datasets.audit import audit_dataset
from app.datasets.catalog import find_files, list_datasets
from app.datasets.errors import DataError
from app.datasets.inspect import inspect_dataset
from app.datasets.places import S3Path, Sources, s3_root
from app.datasets.preflight import preflight
from app.datasets.schema import open_dataset
from app.datasets.split import plan_split
from app.jobs.config import DataConfig, JobRequest
from tests.app.datasets.make import START_S, table, write
from tests.app.datasets.market import market, table_of
from tests.buckets import CREDENTIALS, make_bucket, serving, upload

DATA = DataConfig(path="set", window=5)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving() as address:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield address


@pytest.fixture
def bucket(endpoint: str) -> str:
    """An empty bucket's URL."""
    return make_bucket(endpoint)


def test_a_bucket_is_planned_described_and_named_like_a_folder(tmp_path: Path, bucket: str) -> None:
    for place, name in enumerate(["b", "a"]):
        write(tmp_path, f"set/{name}.parquet", table(100, start_s=START_S + 100 * place), row_group_size=30)
    remote = upload(tmp_path, bucket)
    here, there = open_dataset(tmp_path, DATA), open_dataset(remote, DATA)
    assert [file.name for file in there.files] == ["set/b.parquet", "set/a.parquet"]
    assert there.fingerprint == here.fingerprint
    assert plan_split(there, DATA) == plan_split(here, DATA)
    assert inspect_dataset(remote, DATA) == inspect_dataset(tmp_path, DATA)
    request = JobRequest.model_validate({"data": {"path": "set", "window": 5}})
    assert preflight(remote, request, limit_s=20).errors == ()


def test_a_bucket_is_audited_like_a_folder(tmp_path: Path, bucket: str) -> None:
    columns = market(1000)
    write(tmp_path, "set/a.parquet", table_of(columns | {"signal": columns["label"] * 1.0}))
    remote = upload(tmp_path, bucket)
    assert audit_dataset(remote, DATA) == audit_dataset(tmp_path, DATA)


@pytest.mark.parametrize(
    "pattern",
    [
        "set",
        "set/a.parquet",
        "set/*.parquet",
        "*/a.parquet",
        "s?t",
        "set/**",
        "**/[ab].parquet",
        "set/[!a]*",
        ".",
    ],
)
def test_paths_and_globs_mean_the_same_in_a_bucket(tmp_path: Path, bucket: str, pattern: str) -> None:
    for name in ("set/a", "set/b", "set/deep/a", "other/a", "top", "set/.hidden", "jobs/x", "saimp_x/y"):
        write(tmp_path, f"{name}.parquet", table(10))
    (tmp_path / "set/notes.txt").write_text("not data")
    remote = upload(tmp_path, bucket)
    names = [file.name for file in find_files(tmp_path, pattern)]
    assert names
    assert [file.name for file in find_files(remote, pattern)] == names
    assert list_datasets(remote) == list_datasets(tmp_path)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("nothing", "no_files"),
        ("no/*.parquet", "no_files"),
        ("../other", "path_outside_data_root"),
        ("s3://other/x", "path_outside_data_root"),
        ("jobs/x.parquet", "no_files"),
    ],
)
def test_what_a_folder_refuses_a_bucket_refuses(tmp_path: Path, bucket: str, path: str, code: str) -> None:
    write(tmp_path, "jobs/x.parquet", table(10))
    remote = upload(tmp_path, bucket)
    with pytest.raises(DataError) as caught:
        find_files(remote, path)
    assert caught.value.code == code


def test_a_damaged_object_is_named_without_its_bucket(tmp_path: Path, bucket: str) -> None:
    path = write(tmp_path, "set/a.parquet", table(100))
    path.write_bytes(path.read_bytes()[:-20])
    remote = upload(tmp_path, bucket)
    assert isinstance(remote, S3Path)
    with pytest.raises(DataError) as caught:
        open_dataset(remote, DATA)
    assert caught.value.code == "truncated"
    assert "set/a.parquet" in caught.value.message
    assert remote.key not in caught.value.message


def test_a_changed_object_looks_different(tmp_path: Path, bucket: str) -> None:
    write(tmp_path, "set/a.parquet", table(100))
    remote = upload(tmp_path, bucket)
    dataset = open_dataset(remote, DATA)
    before = dataset.files[0].path.stat()
    write(tmp_path, "set/a.parquet", table(101))
    upload(tmp_path, bucket)
    assert dataset.files[0].path.stat() != before
    assert open_dataset(remote, DATA).fingerprint != dataset.fingerprint


def test_a_bucket_that_is_not_there_is_unavailable(bucket: str) -> None:
    url = bucket.replace("s3://bucket", "s3://missing-bucket")
    with pytest.raises(DataError) as caught:
        find_files(s3_root(url), "set")
    assert (caught.value.code, caught.value.status) in [("source_unavailable", 503), ("no_files", 422)]


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "s3://bucket/prefix"),
        ("/data", "s3://bucket/prefix"),
        ("https://bucket/prefix", "s3://bucket/prefix"),
        ("s3://bucket//prefix", "s3://bucket/prefix"),
        ("s3://key:secret@bucket/prefix", "holds no credentials"),
        ("s3://bucket/prefix?anything=1", "not 'anything'"),
    ],
)
def test_what_the_operator_allows_is_a_url_without_secrets(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        s3_root(url)
    assert "secret" not in str(caught.value)


def test_a_path_leads_below_the_folder_or_the_longest_allowed_url(tmp_path: Path) -> None:
    wide, deep = s3_root("s3://desk/"), s3_root("s3://desk/btc?region=eu-west-1")
    sources = Sources(tmp_path, (wide, deep))
    assert sources.of("btc/a") == (tmp_path, "btc/a")
    assert sources.of("s3://desk/eth/a?.parquet") == (wide, "eth/a?.parquet")
    assert sources.of("s3://desk/btc/2025") == (deep, "2025")
    assert sources.of("s3://desk/btc") == (deep, ".")
    assert sources.of("s3://desk/btc2") == (wide, "btc2")


@pytest.mark.parametrize(
    "path",
    [
        "s3://desk",
        "s3://desktop/btc",
        "s3://desk/btc/../eth",
        "s3://desk/btc/%2e%2e/eth",
        "s3://desk/btc\\x",
        "s3://DESK/btc/a",
        "S3://desk/btc/a",
        "s3://key:secret@desk/btc/a",
        "s3://desk/btcx",
        "https://desk/btc/a",
    ],
)
def test_only_what_the_operator_allows_can_be_named(tmp_path: Path, path: str) -> None:
    sources = Sources(tmp_path, (s3_root("s3://desk/btc"),))
    with pytest.raises(DataError) as caught:
        find_files(sources, path)
    assert caught.value.code == "path_outside_data_root"
