"""Resume is exact: interrupted anywhere, a run goes on to the bits of one that never was."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from app.datasets.schema import open_dataset
from app.datasets.split import plan_split
from tests.factories import write_dataset
from tests.worker.engine.factory import (
    MLP,
    VIVIT,
    InMemory,
    make_request,
    make_run,
    make_samples,
    weights_of,
)
from worker.engine.epoch import Epoch
from worker.engine.errors import CorruptCheckpoint
from worker.engine.events import (
    BatchDone,
    BestFile,
    CheckpointSaved,
    Ended,
    EpochDone,
    EpochStarted,
    PhaseChanged,
    Tested,
    Tick,
    Warned,
    decode,
    encode,
)
from worker.engine.keep import FIRST_S
from worker.engine.loop import fit
from worker.engine.resolve import resolve, settled
from worker.engine.resume import restore, state_of
from worker.engine.run import Run, build_run
from worker.engine.samples import Splits
from worker.models.normalizer import Scaling
from worker.stream.prepare import survey
from worker.stream.shuffle import Shuffle
from worker.stream.stream import Stream

torch.set_num_threads(1)

# What may differ between a run and the same run interrupted.
TIMES = {"time", "samples_per_s", "duration_s", "ram_peak", "sidecar"}
DROPPING = {"mlp": {**MLP, "dropout": 0.3}, "vivit": {**VIVIT, "dropout": 0.3}}


class Case:
    """A small job, its data, and what it gives when nobody interrupts it."""

    def __init__(self, folder: Path, *, train: InMemory | None = None, **body: Any) -> None:
        self.folder = folder
        self._numbers = iter(range(10**6))
        self._train = train or make_samples(33)
        training = {"epochs": 3, "log_every": 3, "eval_batch_size": 4, **body.pop("training", {})}
        self._body = {"optimizer": {"lr": 0.02}, "training": training, **body}

    def run(self, **extra: Any) -> Run:
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        body = {"checkpoint": {"every_s": None}, **self._body}
        if "checkpoint" in extra:
            body["checkpoint"] = extra.pop("checkpoint")
        test = make_samples(11, seed=2)
        val = make_samples(9, seed=1)
        return make_run(
            make_request(**body), train=self._train, val=val, test=test, directory=folder, **extra
        )


def numbers(events: list[Any]) -> list[Any]:
    """All that is told but times: numeric columns, bests, endings, in order."""
    told = [e for e in events if not isinstance(e, Tick | CheckpointSaved | PhaseChanged | EpochStarted)]
    return [plain(event) for event in told]


def plain(event: Any) -> Any:
    body = {f.name: getattr(event, f.name) for f in dataclasses.fields(event) if f.name not in TIMES}
    best = body.get("best")
    if isinstance(best, BestFile):
        body["best"] = (best.name, best.sha256, best.size, best.previous_loss)
    return type(event).__name__, {key: repr(value) for key, value in body.items()}


def finish(run: Run) -> tuple[list[Any], list[float] | None, Path, list[Any]]:
    """Go on to the end: the numbers told, the final weights, the best file, and all events.

    The final weights are those after the last epoch (None without one to train): the test has the best ones.
    """
    final = None
    events = []
    for event in fit(run):
        events.append(event)
        if isinstance(event, EpochDone):
            final = weights_of(run).tolist()
    assert run.best is not None
    return numbers(events), final, run.directory / run.best.name, events


def interrupt(run: Run, after: int) -> tuple[CheckpointSaved, list[Any]]:
    """Ask for a checkpoint after that many events; return it, and what counts: events up to its position."""
    events: list[Any] = []
    with_stop = fit(run)
    for event in with_stop:
        events.append(event)
        if isinstance(event, CheckpointSaved):
            with_stop.close()
            return event, events
        if len(events) == after:
            run.request_checkpoint()
    raise AssertionError("it ended before it could be interrupted")


def resumed(case: Case, run: Run, saved: CheckpointSaved) -> Run:
    """Start anew, in another folder, with the random states of another process."""
    torch.manual_seed(4711)
    random.seed(4711)
    np.random.seed(4711)
    again = case.run()
    told = restore(again, run.directory / saved.name, sha256=saved.sha256)
    assert (told.epoch, told.batch, told.step, told.is_epoch_trained) == (
        saved.epoch,
        saved.batch,
        saved.step,
        saved.is_epoch_trained,
    )
    return again


class Streamed(Case):
    """The same from Parquet: windows shuffled by the seed, features normalised in the model."""

    def __init__(self, folder: Path, **body: Any) -> None:
        super().__init__(folder, **body)
        write_dataset(folder / "data", rows=80, features=12)
        split = {"train": 0.6, "val": 0.2, "test": 0.2}
        data = {"path": "data", "window": 4, "split": split, "horizon_s": 0.0, "normalize": "robust"}
        self._body["data"] = {**data, "shuffle": "block", "shuffle_buffer": 20, "shuffle_run": 3}
        request = make_request(**self._body).data
        self._dataset = open_dataset(folder, request)
        self._surveyed = survey(self._dataset, plan_split(self._dataset, request), "robust", "error")

    def run(self, **extra: Any) -> Run:
        folder = self.folder / str(next(self._numbers))
        folder.mkdir()
        request = make_request(**{"checkpoint": {"every_s": None}, **self._body})
        plan, data = self._surveyed.plan, request.data
        shuffle = Shuffle(data.shuffle_buffer, data.shuffle_run, request.training.seed)
        assert self._surveyed.center_F is not None
        assert self._surveyed.scale_F is not None
        return build_run(
            request,
            resolve(request, num_classes=plan.num_classes),
            shape=self._dataset.features.shape,
            num_classes=plan.num_classes,
            splits=Splits(
                Stream(self._dataset, plan, "train", shuffle=shuffle),
                Stream(self._dataset, plan, "val"),
                Stream(self._dataset, plan, "test"),
            ),
            directory=folder,
            scaling=Scaling(self._surveyed.center_F, self._surveyed.scale_F),
            **extra,
        )


CASES: dict[str, dict[str, Any]] = {
    "mlp": {"model": DROPPING["mlp"], "schedule": {"warmup_steps": 5}},
    "vivit": {"model": DROPPING["vivit"], "training": {"epochs": 2, "clip_grad_norm": 0.5}},
    "bf16": {"model": DROPPING["mlp"], "precision": "bf16", "training": {"ema_decay": 0.8}},
    "fp16": {"model": DROPPING["vivit"], "precision": "fp16", "training": {"epochs": 2}},
    "everything": {
        "model": DROPPING["vivit"],
        "loss": {"name": "focal"},
        "precision": "fp16",
        "schedule": {"name": "plateau", "patience": 0, "warmup_steps": 2},
        "training": {"epochs": 2, "clip_grad_norm": 0.5, "ema_decay": 0.8, "deterministic": True},
    },
    "streamed": {
        "model": DROPPING["mlp"],
        "schedule": {"name": "cosine"},
        "training": {"epochs": 2, "activation_checkpointing": True},
    },
    "early": {
        "model": DROPPING["mlp"],
        "optimizer": {"lr": 0.5},
        "early_stopping": {"patience": 1},
        "training": {"epochs": 9},
    },
    "plateau": {
        "model": MLP,
        "optimizer": {"name": "sgd", "lr": 1.0},
        "schedule": {"name": "plateau", "patience": 0},
        "training": {"batch_size": 4, "effective_batch": 15, "ema_decay": 0.5},
    },
}


@pytest.fixture(autouse=True)
def _deterministic_off() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("name", CASES)
def test_interrupted_after_any_event_it_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    case = (Streamed if name == "streamed" else Case)(tmp_path, **CASES[name])
    expected, weights, best, events = finish(case.run())
    positions = set()
    for after in range(1, len(events) - 1):
        run = case.run()
        try:
            saved, told = interrupt(run, after)
        except AssertionError:
            assert isinstance(events[after], Tested | Ended)
            continue
        position = (saved.epoch, saved.step, saved.batch, saved.is_epoch_trained)
        if position in positions:
            continue
        positions.add(position)
        again = resumed(case, run, saved)
        rest, found, found_best, _ = finish(again)
        assert numbers(told) + rest == expected
        assert found in (weights, None)
        assert found_best.name == best.name
        assert found_best.read_bytes() == best.read_bytes()
    steps = sum(isinstance(e, Tick) for e in events)
    epochs = sum(isinstance(e, EpochDone) for e in events)
    # Before each of three steps an epoch, in its validation, and in the test.
    assert len(positions) == epochs * 4 + 1, (positions, steps)


@settings(max_examples=12, deadline=None)
@given(pauses=st.lists(st.integers(1, 12), min_size=2, max_size=5), data=st.data())
def test_a_chain_of_interruptions_changes_nothing(
    pauses: list[int], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    name = data.draw(st.sampled_from(["mlp", "fp16", "plateau", "bf16"]))
    case = Case(tmp_path_factory.mktemp("chain"), **CASES[name])
    expected, weights, best, _ = finish(case.run())
    run, told = case.run(), []
    for after in pauses:
        try:
            saved, some = interrupt(run, after)
        except AssertionError:
            return  # it ended first
        told += numbers(some)
        run = resumed(case, run, saved)
    rest, found, found_best, _ = finish(run)
    assert told + rest == expected
    assert found in (weights, None)
    assert found_best.read_bytes() == best.read_bytes()


@pytest.mark.parametrize("name", ["mlp", "fp16", "bf16"])
def test_how_often_checkpoints_are_taken_changes_no_bit(name: str, tmp_path: Path) -> None:
    case = Case(tmp_path, **CASES[name])
    found = [finish(case.run(checkpoint={"every_s": every_s})) for every_s in (None, 300.0, 0.0)]
    counts = [sum(isinstance(e, CheckpointSaved) for e in events) for *_, events in found]
    assert counts[:2] == [0, 0]
    assert counts[2] >= sum(isinstance(e, EpochDone) for e in found[0][3]) * 4 - 1
    for told, weights, best, _ in found[1:]:
        assert told == found[0][0]
        assert weights == found[0][1]
        assert best.read_bytes() == found[0][2].read_bytes()


@pytest.mark.parametrize("every_s", [0.0, 300.0])
def test_a_checkpoint_in_the_running_resumes_too(every_s: float, tmp_path: Path) -> None:
    case = Case(tmp_path, **CASES["mlp"])
    expected, weights, _, events = finish(case.run())
    now = [0.0]

    def look() -> float:
        wait_for_checkpoints()  # how fast they are written is not what this is about
        return now[0]

    run = case.run(checkpoint={"every_s": every_s}, clock=look)
    told = []
    for event in fit(run):
        told.append(event)
        now[0] += 100.0  # a checkpoint at every third event
    saved = [e for e in told if isinstance(e, CheckpointSaved)]
    assert len(saved) >= 3
    for event in saved:
        rest, found, _, _ = finish(resumed(case, run, event))
        # What was told up to its position; rows beyond it are told again.
        kept = [e for e in told[: told.index(event)] if before(e, event)]
        assert numbers(kept) + rest == expected
        assert found in (weights, None)
    assert len(told) == len(events) + len(saved)


def wait_for_checkpoints() -> None:
    for thread in threading.enumerate():
        if thread.name == "checkpoint":
            thread.join()


def before(event: Any, position: CheckpointSaved) -> bool:
    """What the supervisor keeps when a run resumes at a position."""
    match event:
        case BatchDone():
            return (event.epoch, event.batch) < (position.epoch, position.batch)
        case EpochDone():
            return event.epoch < position.epoch
        case _:
            return False


@pytest.mark.parametrize(("copying_s", "apart_s"), [(0.0, 100.0), (5.0, 500.0)])
def test_the_first_checkpoint_comes_after_half_a_minute_and_then_at_the_interval(
    copying_s: float, apart_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy that holds the training up makes them rarer: it may cost a hundredth of the time."""
    now = [0.0]

    def copy(run: Run, epoch: Epoch) -> dict[str, Any]:
        now[0] += copying_s
        return state_of(run, epoch)

    monkeypatch.setattr("worker.engine.loop.state_of", copy)
    run = Case(tmp_path, training={"epochs": 50 if not copying_s else 200}, early_stopping=None).run(
        checkpoint={"every_s": 100.0}, clock=lambda: now[0]
    )
    saved_at = []
    for event in fit(run):
        if isinstance(event, CheckpointSaved):
            saved_at.append(now[0])
        now[0] += 1.0
        wait_for_checkpoints()  # the file is written while time stands still
    assert FIRST_S <= saved_at[0] <= FIRST_S + copying_s + 10
    assert len(saved_at) >= 4
    # From position to position; it is told a boundary later.
    assert all(apart_s - 10 <= b - a <= apart_s + copying_s + 20 for a, b in pairwise(saved_at))


def test_never_means_on_request_only(tmp_path: Path) -> None:
    now = iter(range(0, 10**9, 10**6))
    run = Case(tmp_path).run(checkpoint={"every_s": None}, clock=lambda: float(next(now)))
    assert not any(isinstance(e, CheckpointSaved) for e in fit(run))


def test_asked_for_in_validation_it_is_made_at_once_and_the_run_may_leave(tmp_path: Path) -> None:
    run = Case(tmp_path).run()
    events: list[Any] = []
    for event in fit(run):
        events.append(event)
        if isinstance(event, Tick) and events[-2] == PhaseChanged("validating", 11):
            run.request_checkpoint()
            assert run.is_checkpoint_requested
        if isinstance(event, CheckpointSaved):
            break
    assert not run.is_checkpoint_requested
    assert events[-1].is_epoch_trained
    assert events[-1].batch == 11
    assert isinstance(events[-2], Tick)
    assert decode(encode(events[-1])) == events[-1]


def test_a_file_is_named_by_step_and_content_and_nothing_else_is_left(tmp_path: Path) -> None:
    run = Case(tmp_path).run()
    saved, _ = interrupt(run, 8)
    assert saved.name == f"resume-s{saved.step:08d}-{saved.sha256[:16]}.pt"
    assert [path.name for path in run.directory.iterdir()] == [saved.name]
    assert (run.directory / saved.name).stat().st_size == saved.size
    # No code is run by loading it.
    torch.load(run.directory / saved.name, weights_only=True)


def test_leaving_in_the_middle_of_a_write_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    save = torch.save

    def slow(*args: Any, **kwargs: Any) -> None:
        may_write.wait(10)
        save(*args, **kwargs)

    run = Case(tmp_path).run(checkpoint={"every_s": 300.0}, clock=iter([0.0, *[31.0] * 1000]).__next__)
    monkeypatch.setattr("torch.save", slow)
    events = fit(run)
    while not any(thread.name == "checkpoint" for thread in threading.enumerate()):
        next(events)
    threading.Timer(0.05, may_write.set).start()
    events.close()
    assert list(run.directory.iterdir()) == []


def test_a_checkpoint_that_cannot_be_written_is_warned_about_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, training={"epochs": 1})
    expected = finish(case.run())

    def full(*_: Any, **__: Any) -> None:
        if threading.current_thread().name == "checkpoint":
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    found = finish(case.run(checkpoint={"every_s": 0.0}))
    warnings = [e for e in found[3] if isinstance(e, Warned)]
    assert warnings[0] == Warned(
        "checkpoint_failed", "A resume checkpoint could not be written: No space left on device."
    )
    assert [told for told in found[0] if told[0] != "Warned"] == expected[0]
    asked = case.run()
    for event in fit(asked):
        if isinstance(event, EpochStarted):
            asked.request_checkpoint()
        if isinstance(event, Warned):
            assert not asked.is_checkpoint_requested
            break
    assert isinstance(event, Warned)


@settings(max_examples=20, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused(
    position: float, bit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    case = Case(tmp_path_factory.mktemp("flipped"))
    run = case.run()
    saved, _ = interrupt(run, 8)
    path = run.directory / saved.name
    content = bytearray(path.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptCheckpoint, match="has changed since it was written"):
        restore(case.run(), path, sha256=saved.sha256)


def test_a_file_that_is_gone_or_of_another_run_is_refused(tmp_path: Path) -> None:
    run = Case(tmp_path).run()
    saved, _ = interrupt(run, 8)
    path = run.directory / saved.name
    with pytest.raises(CorruptCheckpoint, match="is gone"):
        restore(run, path.with_name("resume-s00000001-0000000000000000.pt"), sha256="0" * 64)
    (tmp_path / "other").mkdir()
    other = Case(tmp_path / "other", optimizer={"lr": 0.5}).run()
    with pytest.raises(CorruptCheckpoint, match="another optimizer"):
        restore(other, path, sha256=saved.sha256)


def as_of_before(path: Path, resolved: dict[str, Any]) -> str:
    """Write a resume checkpoint anew, of a version that settled this; return its sha256."""
    state = torch.load(path, weights_only=True)
    state["resolved"] = json.dumps(resolved, sort_keys=True)
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("is_recomputing", [False, True])
def test_a_checkpoint_of_a_version_that_settled_less_goes_on_as_it_began(
    is_recomputing: bool, tmp_path: Path
) -> None:
    training = {"activation_checkpointing": is_recomputing, "deterministic": True}
    case = Case(tmp_path, model=DROPPING["vivit"], training=training)
    first = case.run()
    before = dataclasses.asdict(first.resolved)
    for name in ("share_rows", "activation_checkpointing", "lays_out_keys"):
        del before[name]
    old = settled(before, first.request)
    _, whole, _, _ = finish(case.run(resolved=old))
    first = case.run(resolved=old)
    saved, _ = interrupt(first, 8)
    path = first.directory / saved.name
    sha256 = as_of_before(path, before)
    again = case.run(resolved=old)
    restore(again, path, sha256=sha256)
    _, final, _, _ = finish(again)
    assert final == whole
    with pytest.raises(CorruptCheckpoint, match="another lays_out_keys"):
        restore(case.run(), path, sha256=sha256)


def test_keys_laid_out_are_the_same_attention_with_other_roundings(tmp_path: Path) -> None:
    case = Case(tmp_path, model=VIVIT)
    today = case.run(dtype=torch.float64)
    before = dataclasses.replace(today.resolved, lays_out_keys=True)
    told = [finish(run)[3] for run in (today, case.run(dtype=torch.float64, resolved=before))]
    one, other = ([event.val_loss for event in events if isinstance(event, EpochDone)] for events in told)
    assert one != other
    assert one == pytest.approx(other, rel=1e-9)


def test_a_checkpoint_of_a_version_that_settled_more_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    run = case.run()
    saved, _ = interrupt(run, 8)
    path = run.directory / saved.name
    sha256 = as_of_before(path, {**dataclasses.asdict(run.resolved), "not_known_yet": 1})
    with pytest.raises(CorruptCheckpoint, match="another not_known_yet"):
        restore(case.run(), path, sha256=sha256)


def test_the_best_comes_along_and_a_broken_one_is_refused(tmp_path: Path) -> None:
    case = Case(tmp_path)
    run = case.run()
    events = fit(run)
    for event in events:
        if isinstance(event, EpochDone):
            run.request_checkpoint()
        if isinstance(event, CheckpointSaved):
            break
    events.close()
    assert isinstance(event, CheckpointSaved)
    assert run.best is not None
    assert event.best == run.best.name
    again = case.run()
    told = restore(again, run.directory / event.name, sha256=event.sha256)
    assert told.best == run.best
    assert decode(encode(told)) == told
    assert (again.directory / run.best.name).read_bytes() == (run.directory / run.best.name).read_bytes()
    (run.directory / run.best.name).write_bytes(b"not it")
    with pytest.raises(CorruptCheckpoint, match="has changed"):
        restore(case.run(), run.directory / event.name, sha256=event.sha256)


def test_taking_a_state_changes_nothing_in_the_run(tmp_path: Path) -> None:
    from worker.engine.epoch import Epoch  # noqa: PLC0415

    run = Case(tmp_path, model=DROPPING["mlp"]).run()
    epoch = Epoch(run)
    steps = epoch.train(lambda _: iter(()))  # type: ignore[arg-type, return-value]
    for _ in range(7):
        next(steps)
    states = [state_of(run, epoch) for _ in range(2)]
    assert run.attempted is not None
    for state in states:
        del state["epoch"]["elapsed_s"]
    assert repr(states[0]) == repr(states[1])
    assert math.isfinite(states[0]["attempted"][1])
    assert json.loads(states[0]["resolved"])["threads"] == 1
