"""Roots as older versions left them go on under this one, and no field comes without being looked at."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.jobs import later
from app.jobs.config import JobRequest, config_hash
from tests.postgres.engines import ENGINES
from tests.upgrade import names
from tests.upgrade.upgrading import KILLED, Json, Upgraded, known, sha256, unpacked, upgraded
from tests.upgrade.write_roots import VERSIONS

# What came to the events of an attempt since the oldest root, and what an event without it counts as. They
# cross from a runner to its own supervisor; of those in the database `oom_recovered` alone is read again.
EVENTS: Mapping[str, Any] = {
    "OomRecovered.during": "training",
    "OomRecovered.rung": None,  # not known: later jobs begin at the top
    "PhaseChanged.batch": None,
    "Prepared.comparison_key": None,
    **dict.fromkeys(
        ("Rung.batch_size", "Rung.eval_batch_size", "Rung.is_recomputing", "Rung.is_sharing"),
        "as `resolved` has it",
    ),
}
# The same of rows of events, by kind, and of the keys of a resume checkpoint.
EVENT_ROWS: Mapping[str, Any] = {}
CHECKPOINT: Mapping[str, Any] = {}

# What of a job's answer is of the moment.
OF_THE_MOMENT = {"queue", "links", "champion"}


@pytest.mark.parametrize("commit", VERSIONS)
@pytest.mark.parametrize("engine", ENGINES)
def test_an_upgrade_loses_nothing(engine: str, commit: str, tmp_path: Path) -> None:
    root = unpacked(commit, engine, tmp_path / "root")
    served, alone = (json.loads((root / f"{name}.json").read_text()) for name in ("served", "alone"))
    champion = sha256(root / "data" / "saimp_best.pth")
    with upgraded(root) as new:
        before = {path: names.of_checkpoint(path) for path in new.checkpoints()}
        # Without a promotion the file follows the rules of today, which may name another job.
        if served["other"]["is_promoted"]:
            assert new.champion() == champion
        assert_served(new, served)
        ids = new.go_on(served)
        alone |= dict.fromkeys(("child", "again"), alone.pop("cancelled"))
        for name in alone.keys() & ids.keys():
            assert_same_numbers(new.api.numbers(ids[name]), alone[name], name)
        submitted = new.api.told(ids["again"])["events"][0]
        assert submitted["data"]["goes_on"]["epoch"] >= 2
        assert_went_on(new, served, ids)
        if served["other"]["is_promoted"]:
            assert new.champion() == champion
        assert_no_new_keys(new, served, before)


def assert_served(new: Upgraded, served: Mapping[str, Json]) -> None:
    """Every job is there as the version before last served it, by the same names."""
    for name, told in served.items():
        old, job = told["job"], new.api.job(told["job"]["id"])
        request = JobRequest.model_validate_json(json.dumps(job["config"]))
        assert config_hash(request) == old["config_hash"], name
        if name == KILLED:
            assert (job["status"], job["attempt"], job["config"]) == (
                "running",
                old["attempt"],
                old["config"],
            )
            continue
        was = {key: value for key, value in old.items() if key not in OF_THE_MOMENT}
        assert _known(job, was) == was
        now = new.api.told(job["id"])
        for key in ("epochs", "batches", "events"):
            assert _known(now[key], told[key]) == told[key], (name, key)


def assert_same_numbers(found: Json, whole: Json, name: str) -> None:
    """Epochs, counts and rows as they would have been, losses within 1e-6."""
    assert [one["epoch"] for one in found["epochs"]] == [one["epoch"] for one in whole["epochs"]], name
    for ours, theirs in zip(found["epochs"], whole["epochs"], strict=True):
        assert [sum(row) for row in ours["confusion"]] == [sum(row) for row in theirs["confusion"]], name
        for key in ("train_loss", "val_loss", "lr"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-6), (name, key)
        assert (ours["best"], ours["skipped_steps"]) == (theirs["best"], theirs["skipped_steps"]), name
    for key in ("epoch", "batch", "step"):
        assert found["batches"][key] == whole["batches"][key], name
    for key in ("loss", "lr", "grad_norm"):
        assert found["batches"][key] == pytest.approx(whole["batches"][key], abs=1e-5), (name, key)


def assert_went_on(new: Upgraded, served: Mapping[str, Json], ids: Mapping[str, str]) -> None:
    """No job that was begun began again, and none was ended by a crash."""
    for name, told in served.items():
        job, events = new.api.job(ids[name]), new.api.told(ids[name])["events"]
        assert job["crashes"] == 0 or name == KILLED, name
        assert [event["kind"] for event in events if event["kind"] == "checkpoint_discarded"] == [], name
        if told["job"]["status"] in ("paused", "running") or name == "preempted":
            resumed = [event["data"] for event in events if event["kind"] == "resumed"]
            assert resumed[-1]["step"] > 0, name


def assert_no_new_keys(
    new: Upgraded, served: Mapping[str, Json], before: Mapping[Path, Iterable[str]]
) -> None:
    """What this version has written of the jobs has the keys the old one knew, and those that are listed.

    before: the keys of its resume checkpoints.
    """
    old = set(_keys_of_events(event for told in served.values() for event in told["events"]))
    now = set(_keys_of_events(event for job in new.api.jobs() for event in new.api.told(job["id"])["events"]))
    kinds = {key.partition(".")[0] for key in old}
    assert {key for key in now - old if key.partition(".")[0] in kinds} <= set(EVENT_ROWS)
    written = [names.of_checkpoint(path) for path in new.checkpoints() - before.keys()]
    assert written
    assert set().union(*written) - set().union(*before.values()) <= set(CHECKPOINT)


def test_a_field_of_the_body_that_came_later_is_listed_with_its_default() -> None:
    today = set(names.of_body())
    new = {path for commit in VERSIONS for path in today - set(known(commit, "names")["body"])}
    assert new == set(later.BODY)
    defaults = names.defaults()
    for path, value in later.BODY.items():
        default = defaults[path]
        assert value == (later.counted(default, under=path) if isinstance(default, dict) else default), path
    for commit in VERSIONS:
        assert set(known(commit, "names")["body"]) <= today, "a field that is gone leaves its jobs unreadable"


def test_a_key_of_resolved_that_came_later_is_listed() -> None:
    body = JobRequest.model_validate({"data": {"path": "demo"}}).model_dump(mode="json")
    today = set(names.of_resolved())
    new = {key for commit in VERSIONS for key in today - set(known(commit, "names")["resolved"])}
    assert new == set(later.resolved({}, body))


def test_a_field_of_an_event_that_came_later_is_listed() -> None:
    today = set(names.of_events())
    new = {key for commit in VERSIONS for key in today - set(known(commit, "names")["events"])}
    assert new == set(EVENTS)


def test_the_weights_of_a_model_keep_their_names() -> None:
    today = names.of_weights()
    for commit in VERSIONS:
        assert today | known(commit, "names")["weights"] == today


def _keys_of_events(events: Iterable[Json]) -> Iterable[str]:
    for event in events:
        yield from (f"{event['kind']}.{key}" for key in event["data"])


def _known(now: Any, old: Any) -> Any:
    """Leave out of an answer what the old one did not have: it may grow."""
    if isinstance(old, dict) and isinstance(now, dict):
        return {key: _known(value, old[key]) for key, value in now.items() if key in old}
    if isinstance(old, list) and isinstance(now, list) and len(now) >= len(old):
        return [_known(one, other) for one, other in zip(now, old, strict=False)]
    return now
