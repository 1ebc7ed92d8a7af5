"""The stream from a bucket: the samples of local files, the same refusals, an end when the line is cut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from app.datasets import places
from app.datasets.errors import DataChanged, SourceUnavailable
from app.datasets.schema import Dataset, open_dataset
from app.datasets.split import plan_split
from app.jobs.config import DataConfig
from tests.app.datasets.make import START_S, table, write
from tests.buckets import CREDENTIALS, Line, make_bucket, serving, upload
from tests.worker.stream.factory import arrow_features, seen
from worker.stream.prepare import survey
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

torch.set_num_threads(1)

ROWS = 900


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, serving() as address:
        for name, value in CREDENTIALS.items():
            patch.setenv(name, value)
        yield address


def fill(folder: Path, layout: Any, **options: Any) -> None:
    """Write two files; binary ones plainly, as `data build` does."""
    values_NE = np.random.default_rng(0).standard_normal((ROWS, 24), np.float32)
    for number, part in enumerate(np.array_split(np.arange(ROWS), 2)):
        columns = arrow_features(values_NE[part], layout) | {"a": None, "b": None}
        if layout == "binary":
            options = {"compression": "none", "use_dictionary": False, **options}
        rows = table(len(part), start_s=START_S + int(part[0]), **columns)
        metadata = {"dtype": "float32", "shape": [4, 6]}
        write(
            folder, f"set/{1 - number}.parquet", rows, metadata=metadata, **{"row_group_size": 130, **options}
        )


def data(**options: Any) -> DataConfig:
    return DataConfig.model_validate({"path": "set", "window": 8, **options})


def stream_of(dataset: Dataset, config: DataConfig, shuffle: Shuffle | None = None, **options: Any) -> Stream:
    return Stream(dataset, plan_split(dataset, config), "train", shuffle=shuffle, **options)


@pytest.mark.parametrize("layout", ["binary", "list", "columns"])
def test_an_epoch_from_a_bucket_is_that_of_the_local_files(
    tmp_path: Path, endpoint: str, layout: Any
) -> None:
    fill(tmp_path, layout)
    remote = upload(tmp_path, make_bucket(endpoint))
    config = data()
    here, there = open_dataset(tmp_path, config), open_dataset(remote, config)
    for shuffle in (None, Shuffle(64, 4, seed=3)):
        local, streamed = stream_of(here, config, shuffle), stream_of(there, config, shuffle)
        expected = seen(local.batches(5))
        assert len(expected) == local.num_windows
        assert seen(streamed.batches(5)) == expected
        # A later pass, and one that begins anywhere: resuming.
        for skip in (0, 17, 500):
            assert seen(streamed.batches(5, skip=skip)) == expected[skip:]


def test_row_groups_larger_than_a_block_come_in_slices(tmp_path: Path, endpoint: str) -> None:
    fill(tmp_path, "list", row_group_size=ROWS)
    remote = upload(tmp_path, make_bucket(endpoint))
    config = data()
    local = stream_of(open_dataset(tmp_path, config), config, budget_bytes=1 << 16)
    streamed = stream_of(open_dataset(remote, config), config, budget_bytes=1 << 16)
    assert seen(streamed.batches(5, skip=300)) == seen(local.batches(5, skip=300))


def test_groups_and_scales_are_those_of_the_local_files(tmp_path: Path, endpoint: str) -> None:
    for place, name in enumerate("ba"):
        rows = table(200, start_s=START_S + 50 * place, symbol=[name] * 200)
        write(tmp_path, f"set/{name}.parquet", rows, row_group_size=60)
    remote = upload(tmp_path, make_bucket(endpoint))
    config = data(group="symbol", normalize="standard", non_finite="skip")
    here, there = open_dataset(tmp_path, config), open_dataset(remote, config)
    assert seen(stream_of(there, config).batches(5)) == seen(stream_of(here, config).batches(5))
    ours, theirs = (survey(one, plan_split(one, config), "standard", "skip") for one in (here, there))
    assert ours.plan == theirs.plan
    assert ours.center_F is not None
    assert theirs.center_F is not None
    assert torch.equal(ours.center_F, theirs.center_F)


@pytest.mark.parametrize("change", ["rewritten", "deleted"])
def test_an_object_that_changes_in_an_epoch_is_named(tmp_path: Path, endpoint: str, change: str) -> None:
    fill(tmp_path, "binary")
    url = make_bucket(endpoint)
    config = data()
    dataset = open_dataset(upload(tmp_path, url), config)
    stream = stream_of(dataset, config)
    batches = stream.batches(5)
    next(batches)
    if change == "rewritten":
        # As many rows, bytes and row groups: only the entity tag differs.
        path = tmp_path / dataset.files[0].name
        content = bytearray(path.read_bytes())
        content[2000] ^= 1
        path.write_bytes(content)
        upload(tmp_path, url)
    else:
        system, key = places._bucket(url), dataset.files[0].path.key
        system.delete_file(key)
    with pytest.raises(DataChanged, match="set/1"):
        list(batches)
    with pytest.raises(DataChanged, match="set/1"):
        list(stream.batches(5))


@pytest.mark.parametrize("fault", ["cut", "silence"])
def test_a_lost_connection_is_a_named_error_and_no_hang(
    tmp_path: Path, endpoint: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "CONNECT_S", 1)
    monkeypatch.setattr(places, "SILENCE_S", 1)
    monkeypatch.setattr(places, "TRIES", 2)
    fill(tmp_path, "list", row_group_size=20)
    url = make_bucket(endpoint)
    upload(tmp_path, url)
    line = Line(endpoint)
    config = data()
    dataset = open_dataset(places.s3_root(url.replace(endpoint, line.endpoint)), config)
    batches = stream_of(dataset, config, budget_bytes=1 << 16).batches(5)
    next(batches)
    getattr(line, fault)()
    try:
        with pytest.raises(
            SourceUnavailable, match=r"set/\d.parquet cannot be had from its bucket: NETWORK_C"
        ) as caught:
            list(batches)
    finally:
        line.cut()
    assert line.endpoint not in str(caught.value)
    assert caught.value.hint is not None
