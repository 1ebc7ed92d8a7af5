"""A block shuffle gives every sample once an epoch, the same from any position, whatever the memory."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.stream.factory import Planted, plant, seen
from worker.stream.cursor import Cursor
from worker.stream.errors import StreamBudgetTooSmall
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

torch.set_num_threads(1)

SIZES = st.sampled_from([1, 2, 3, 5, 15, 64])
SHUFFLES = st.builds(
    Shuffle,
    buffer=st.sampled_from([1, 2, 7, 20, 1000]),
    run=st.sampled_from([1, 1, 2, 3, 50]),
    seed=st.integers(0, 2**63 - 1),
)


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, object]:
    return {
        "rows": draw(st.integers(10, 90)),
        "window": draw(st.integers(1, 9)),
        "stride": draw(st.sampled_from([1, 1, 2, 12])),
        "layout": draw(st.sampled_from(["binary", "list", "columns"])),
        "row_group_rows": draw(st.sampled_from([2, 7, 100])),
        "num_files": draw(st.integers(1, 3)),
        "num_groups": draw(st.sampled_from([0, 0, 1, 4])),
        "kept": draw(st.sampled_from([1.0, 0.8])),
        "seed": draw(st.integers(0, 1 << 20)),
    }


def stream_of(planted: Planted, shuffle: Shuffle | None, budget_bytes: int = 1 << 20) -> Stream:
    return Stream(planted.dataset, planted.plan, "train", budget_bytes=budget_bytes, shuffle=shuffle)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(recipe=recipes(), shuffle=SHUFFLES, size=SIZES, epoch=st.integers(1, 9), data=st.data())
def test_every_sample_comes_once_from_its_own_buffer_and_from_any_position(
    recipe: dict[str, object], shuffle: Shuffle, size: int, epoch: int, data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(Path(folder), **recipe)  # type: ignore[arg-type]
        expected, stream = planted.expected(), stream_of(planted, shuffle)
        batches = list(stream.batches(size, epoch=epoch))
        found = seen(iter(batches))
        assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
        starts = range(0, len(expected), shuffle.buffer)
        for number, first in enumerate(starts):
            buffer = expected[first : first + shuffle.buffer]
            order_S = shuffle.order(epoch, number, len(buffer))
            assert found[first : first + shuffle.buffer] == [buffer[i] for i in order_S]
            assert sorted(order_S.tolist()) == list(range(len(buffer)))

        skip = data.draw(st.integers(0, len(expected)), label="skip")
        again = stream_of(planted, shuffle, data.draw(st.sampled_from([1, 2000]), label="budget"))
        assert seen(again.batches(size, skip=skip, epoch=epoch)) == found[skip:]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    recipe=recipes(), shuffle=st.none() | SHUFFLES, size=SIZES, stops=st.lists(st.integers(0, 9), max_size=12)
)
def test_any_interruptions_give_exactly_the_uninterrupted_sequence(
    recipe: dict[str, object], shuffle: Shuffle | None, size: int, stops: list[int]
) -> None:
    epochs = 3
    with tempfile.TemporaryDirectory() as folder:
        planted = plant(Path(folder), **recipe)  # type: ignore[arg-type]
        whole = Cursor(stream_of(planted, shuffle))
        expected = [seen(iter([b])) for _ in range(epochs) for b in whole.batches(size)]
        found, state = [], Cursor(stream_of(planted, shuffle)).state_dict()
        for stop in itertools.chain(stops, itertools.repeat(None)):
            cursor = Cursor(stream_of(planted, shuffle))
            cursor.load_state_dict(state)
            if cursor.epoch > epochs:
                break
            for batch in itertools.islice(cursor.batches(size), stop):
                found.append(seen(iter([batch])))
            state = cursor.state_dict()
        assert found == expected
        assert {type(value) for value in state.values()} == {int}


def test_epochs_and_seeds_differ_and_repeat(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=90)
    stream = stream_of(planted, Shuffle(64, 1, 5))
    first, second = (seen(stream.batches(7, epoch=epoch)) for epoch in (1, 2))
    assert first != second
    assert seen(stream.batches(7, epoch=1)) == first
    assert seen(stream_of(planted, Shuffle(64, 1, 6)).batches(7, epoch=1)) != first
    assert seen(stream_of(planted, Shuffle(1, 1, 5)).batches(7, epoch=1)) == planted.expected()


def test_runs_stay_together_and_share_their_rows(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=67, window=4)
    batches = list(stream_of(planted, Shuffle(64, 8, 0)).batches(8))
    assert all(batch.is_dense and batch.rows_RF.shape[0] == 8 + 3 for batch in batches)


@pytest.mark.parametrize("run", [1, 3])
def test_narrow_of_a_shuffled_step_equals_smaller_batches(tmp_path: Path, run: int) -> None:
    stream = stream_of(plant(tmp_path, rows=70), Shuffle(30, run, 1))
    cut = [b.narrow(i, min(3, len(b) - i)) for b in stream.batches(15) for i in range(0, len(b), 3)]
    for a, b in zip(cut, stream.batches(3), strict=True):
        assert torch.equal(a.rows_RF, b.rows_RF)
        assert torch.equal(a.starts_B, b.starts_B)
        assert torch.equal(a.labels_B, b.labels_B)
        assert a.is_dense == b.is_dense


def test_a_buffer_holds_rows_not_windows_and_must_fit_the_budget(tmp_path: Path) -> None:
    planted = plant(tmp_path, rows=2100, window=32, shape=(512,), layout="binary", row_group_rows=500)
    assert len(list(stream_of(planted, Shuffle(1500, 1, 0), 16 << 20).batches(64))) == 33
    with pytest.raises(StreamBudgetTooSmall) as caught:
        stream_of(planted, Shuffle(1500, 1, 0), 8 << 20)
    assert caught.value.pointer == "/data/shuffle_buffer"
    assert "1,500 windows" in caught.value.message


def test_the_order_of_a_seed_never_changes() -> None:
    assert Shuffle(8, 1, 42).order(3, 1, 8).tolist() == [2, 5, 1, 6, 0, 3, 4, 7]
    assert Shuffle(8, 3, 42).order(1, 0, 8).tolist() == [6, 7, 0, 1, 2, 3, 4, 5]


def test_neighbours_are_no_closer_than_in_a_full_shuffle_of_the_buffer() -> None:
    order_S = np.concatenate([n * 4096 + Shuffle(4096, 1, 0).order(1, n, 4096) for n in range(8)])
    lag_N = np.abs(np.diff(order_S.reshape(8, 4096), axis=1))
    assert abs(lag_N.mean() / 4096 - 1 / 3) < 0.01  # the mean distance of two points of an interval
