"""The supervisor at every awkward instant, with runners that are not processes."""

from __future__ import annotations

import errno
import json
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app import failpoints
from app.db import EPOCH
from app.errors import StorageUnavailable
from app.jobs.files import sidecar
from app.jobs.metrics import since
from app.jobs.queue import LEASE_S, Owner, Queue
from app.jobs.states import Status
from app.jobs.tables import batch_row, job
from app.settings import Settings
from tests.factories import make_request
from tests.failpoints import Failpoints
from tests.worker.fakes import Bench, make_bench
from worker.attempt import PATIENCE_S
from worker.death import cause_of_death, oom_kills
from worker.engine.events import (
    BatchDone,
    CheckpointSaved,
    Ended,
    EpochStarted,
    PhaseChanged,
    Resumed,
    Tested,
    Warned,
)
from worker.supervisor import GIVE_UP_S, Supervisor, hold_slot, others, slot_of, whoami
from worker.telemetry import Vram

DONE = Ended("completed", "Trained.")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return make_bench(tmp_path)


def away(*_arguments: Any, **_named: Any) -> Any:
    raise StorageUnavailable("The database did not answer.")


def test_a_database_that_is_away_costs_an_attempt_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin()
    with monkeypatch.context() as outage:
        for name in ("record", "finish", "beat", "rescue", "claim", "release"):
            outage.setattr(Queue, name, away)
        bench.says(bench.best(1, 1.0))
        bench.pass_time(600)
        assert bench.supervisor.attempt is not None
        assert bench.row(job_id).best_epoch is None
    bench.says(DONE)
    bench.dies()
    row = bench.row(job_id)
    assert (row.status, row.best_epoch) == (Status.SUCCEEDED, 1)


def test_an_end_that_finds_the_database_full_is_recorded_when_there_is_room(bench: Bench) -> None:
    job_id = bench.begin()
    with bench.queue.database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
    told = ["x" * 60_000 + str(number) for number in range(40)]
    for message in told:
        bench.says(Warned("verbose", message))
    bench.says(bench.best(1, 1.0), DONE)
    bench.dies()
    bench.pass_time(600)
    assert bench.row(job_id).status == Status.RUNNING
    with bench.queue.database.write_engine.connect() as connection:
        connection.connection.dbapi_connection.execute("PRAGMA max_page_count=1000000")  # type: ignore[union-attr]
    bench.supervisor.turn()
    row = bench.row(job_id)
    assert (row.status, row.best_epoch) == (Status.SUCCEEDED, 1)
    assert [e.data["message"] for e in bench.queue.events(job_id) if e.kind == "warning"] == told


def test_dependents_that_a_death_has_kept_from_their_end_are_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as cut_off:
        cut_off.setattr("app.jobs.queue.door.BATCH", 0)
        cut_off.setattr(Queue, "cancel_dependents", away)
        root = bench.queue.submit(make_request())[0].id
        dependent = bench.queue.submit(make_request(depends_on=[root]))[0].id
        bench.queue.cancel(root)
    assert bench.row(dependent).status == Status.QUEUED
    bench.pass_time(6)
    assert bench.row(dependent).reason_code == "dependency_failed"


def test_an_idle_worker_keeps_a_copy_of_the_database(bench: Bench) -> None:
    bench.supervisor.turn()
    assert bench.paths.database_backup().exists()


def test_a_claim_whose_answer_was_lost_is_put_back(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = Queue.claim

    def claim_unheard(self: Queue, *arguments: Any, **named: Any) -> Any:
        claim(self, *arguments, **named)
        away()

    with monkeypatch.context() as outage:
        outage.setattr(Queue, "claim", claim_unheard)
        job_id = bench.begin()
        assert bench.row(job_id).status == Status.RUNNING
    bench.supervisor.turn()
    bench.supervisor.turn()
    assert bench.row(job_id).attempt == 2
    assert bench.attempt.claim.job_id == job_id


def unheard(monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    """Let the answers of a verb's commits get lost."""
    through = getattr(Queue, verb)

    def committed(self: Queue, *arguments: Any, **named: Any) -> Any:
        through(self, *arguments, **named)
        away()

    monkeypatch.setattr(Queue, verb, committed)


def test_rows_whose_commit_was_not_answered_are_there_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin_comparable("k")
    with monkeypatch.context() as outage:
        unheard(outage, "record")
        bench.says(batch(0), Warned("odd", "a warning"))
        bench.says(batch(10), bench.best(1, 1.0))
    bench.says(batch(20))
    bench.says(batch(30), DONE)
    bench.dies()
    assert bench.row(job_id).reason_code == "completed"
    with bench.queue.database.reading() as connection:
        assert since(connection, job_id).batches["batch"] == [0, 10, 20, 30]
    assert kinds(bench, job_id).count("warning") == kinds(bench, job_id).count("best_saved") == 1
    assert bench.paths.champion().exists()


@pytest.mark.parametrize(
    ("verb", "ended", "exit_code"),
    [
        ("finish", DONE, 0),
        ("suspend", Ended("disk_full", "Full.", stopped="pause", evidence={"needed_bytes": 2**60}), 0),
        ("release", Ended("preempted", "Stopped.", stopped="preempt"), 0),
        ("crash", None, -signal.SIGKILL),
    ],
    ids=["finish", "suspend", "release", "crash"],
)
def test_an_ending_whose_commit_was_not_answered_is_not_told_twice(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, verb: str, ended: Ended | None, exit_code: int
) -> None:
    job_id = bench.begin()
    with monkeypatch.context() as outage:
        outage.setattr(Queue, "record", away)
        bench.says(bench.best(1, 1.0), *([ended] if ended else []))
    with monkeypatch.context() as outage:
        unheard(outage, verb)
        bench.dies(exit_code)
        bench.pass_time(1.0)
    told = kinds(bench, job_id)
    row = bench.row(job_id)
    bench.supervisor.stopping = True  # the job is not to be claimed again
    bench.pass_time(1.0)
    assert bench.supervisor.attempt is None
    assert kinds(bench, job_id) == told
    assert len(told) == len(set(told))
    assert (bench.row(job_id).status, bench.row(job_id).crashes) == (row.status, row.crashes)
    assert bench.paths.best(job_id).exists()


def test_a_database_that_went_back_in_time_ends_the_attempt_and_the_job_goes_on(bench: Bench) -> None:
    job_id = bench.begin()
    bench.says(batch(0))
    with bench.queue.database.writing() as connection:  # as a standby that never saw it
        connection.execute(batch_row.delete())
        connection.execute(job.update().values(flush=0))
    bench.says(batch(10))
    assert bench.runner.kills > 0
    bench.dies(-signal.SIGKILL)
    bench.pass_time(1.0)
    bench.pass_time(1.0)
    assert bench.attempt.claim.attempt == 2
    with bench.queue.database.reading() as connection:
        assert since(connection, job_id).batches["batch"] == []


def test_an_epoch_that_is_over_counts_every_batch(bench: Bench) -> None:
    job_id = bench.begin()
    bench.says(EpochStarted(1, 2, 88), batch(0), batch(80))
    assert (bench.row(job_id).epoch, bench.row(job_id).batch) == (1, 80)
    bench.says(PhaseChanged("validating", 88))
    bench.says(bench.best(1, 1.0), DONE)
    bench.dies()
    row = bench.row(job_id)
    assert (row.status, row.epoch, row.batch, row.batches) == ("succeeded", 1, 88, 88)


def test_a_job_that_goes_on_behind_its_last_epoch_is_at_its_end(bench: Bench) -> None:
    job_id = bench.begin()
    bench.says(Resumed("a.ckpt", 3, 0, 9, False, epochs=2, batches=88, best=None))
    assert (bench.row(job_id).epoch, bench.row(job_id).batch) == (2, 88)


def batch(number: int) -> BatchDone:
    return BatchDone(1, number, number, loss=1.0, accuracy=0.5, lr=1e-3, grad_norm=None, time=0.0)


def kinds(bench: Bench, job_id: str) -> list[str]:
    return [event.kind for event in bench.queue.events(job_id)]


def test_leases_that_ran_out_while_the_database_was_away_are_not_held_against_their_hosts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Owner("another-host", "boot", 1, 1.0)
    job_id = str(bench.queue.submit(make_request())[0].id)
    taken = bench.queue.claim(other, "another-slot")
    assert taken is not None
    with bench.queue.database.writing() as connection:
        connection.execute(job.update().values(lease_until=EPOCH))
    with monkeypatch.context() as outage:
        outage.setattr(Queue, "beat", away)
        bench.pass_time(2 * LEASE_S)
    bench.pass_time(LEASE_S - 1)
    assert bench.row(job_id).status == Status.RUNNING
    bench.pass_time(6.0)
    assert bench.row(job_id).attempt == 2  # its host did not come back


@pytest.mark.parametrize(
    "error", [EOFError(), OSError(errno.EMFILE, "Too many open files")], ids=["server_gone", "no_fds"]
)
def test_an_attempt_that_cannot_start_is_a_crash_and_the_worker_lives(bench: Bench, error: Exception) -> None:
    bench.spawner.error = error
    job_id = bench.begin(max_attempts=1)
    row = bench.row(job_id)
    assert (row.status, row.reason_code) == (Status.FAILED, "storage_error")
    bench.spawner.error = None
    bench.begin()
    assert bench.supervisor.attempt is not None


def test_a_logs_root_that_is_no_folder_does_not_end_the_worker(bench: Bench) -> None:
    (bench.root / "logs").write_text("x")
    job_id = bench.begin(max_attempts=1)
    assert bench.row(job_id).status == Status.FAILED


def test_the_slot_outlives_the_name_of_the_host(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    job_id = bench.begin()
    monkeypatch.setattr("socket.gethostname", lambda: "a-new-container.with-a-very-long.name.example")
    again = make_bench_again(bench)
    assert bench.row(job_id).reason_code == "backoff"
    assert len(again.queue.workers()) == 1


def make_bench_again(bench: Bench) -> Bench:
    """Let another supervisor take the slot of one that is gone."""
    return make_bench(bench.root)


def test_a_slot_is_named_once(tmp_path: Path) -> None:
    assert slot_of(tmp_path / "slot") == slot_of(tmp_path / "slot")


def test_what_died_between_commit_and_publish_is_published_at_the_next_start(bench: Bench) -> None:
    job_id = bench.begin_comparable("k")
    bench.says(bench.best(1, 1.0), DONE)
    bench.dies()
    for path in (bench.paths.best(job_id), bench.paths.champion()):
        path.unlink()
        path.with_suffix(".json").unlink()
    make_bench_again(bench)
    assert bench.paths.best(job_id).exists()
    assert (
        json.loads(bench.paths.champion().with_suffix(".json").read_text())["sha256"]
        == bench.row(job_id).best_sha256
    )


@dataclass
class HeldGpu:
    """A GPU of which another process holds so much, in bytes."""

    held: int
    name = "A GPU"

    def holders(self) -> dict[int, int]:
        return {4711: self.held} if self.held else {}

    def read(self) -> Vram:
        return Vram(self.held, 12 * 2**30, None, None, None)


def test_what_died_between_the_end_and_the_sweep_is_settled_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin()
    bench.says(bench.best(1, 1.0))
    folder = bench.attempt_directory
    (folder / "resume-s00000009-0123456789abcdef.pt").write_bytes(b"of no row")
    (folder / "report.md").write_text("# Report")
    with monkeypatch.context() as death:
        death.setattr(Supervisor, "_settle", lambda *_: None)
        bench.says(DONE)
        bench.dies()
    bench.supervisor.arrive()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        path.name for path in folder.glob("best-*")
    )
    assert (bench.paths.job(job_id) / "report.md").read_text() == "# Report"


@pytest.mark.parametrize("is_asked_first", [True, False])
def test_a_cancel_around_the_death_of_a_worker_leaves_no_files(bench: Bench, is_asked_first: bool) -> None:
    job_id = bench.begin()
    bench.best(1, 1.0)  # written, and never committed
    folder = bench.attempt_directory
    if is_asked_first:
        bench.queue.cancel(job_id)
    make_bench_again(bench)
    if not is_asked_first:
        bench.queue.cancel(job_id)  # it waits again: nobody but the API has to do with it
    assert bench.row(job_id).status == Status.CANCELLED
    assert list(folder.iterdir()) == []


def test_a_best_half_published_is_published_whole_at_the_next_start(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin()
    bench.says(bench.best(1, 2.0))
    points = Failpoints(bench.root / "failpoints")
    monkeypatch.setattr(failpoints, "_folder", str(points.folder))
    points.arm("publish.between_links", "error:EIO")
    bench.says(bench.best(2, 1.0))
    bench.says(DONE)
    bench.dies()
    bench.supervisor.arrive()
    row = bench.row(job_id)
    assert bench.paths.best(job_id).read_bytes() == (bench.paths.job(job_id) / row.best_file).read_bytes()
    assert json.loads(sidecar(bench.paths.best(job_id)).read_text())["sha256"] == row.best_sha256


def test_a_gpu_held_by_others_is_waited_for_and_named(bench: Bench) -> None:
    gpu: Any = HeldGpu(8 * 2**30)
    bench.supervisor._gpu = gpu
    job_id = bench.begin()
    row = bench.row(job_id)
    assert (row.status, row.reason_code, row.crashes) == (Status.QUEUED, "gpu_busy", 0)
    assert row.reason_message == "The GPU is held by process 4711 with 8.0 GB."
    gpu.held = 0
    bench.queue.now = lambda: row.run_after + timedelta(seconds=1)
    bench.supervisor.turn()
    assert bench.attempt.claim.job_id == job_id


def test_a_runner_that_does_not_stop_is_killed_when_its_grace_is_over(bench: Bench) -> None:
    job_id = bench.begin()
    bench.supervisor.stopping = True
    bench.supervisor.turn()
    bench.pass_time(PATIENCE_S["preempt"] - 1)
    assert (bench.runner.orders, bench.runner.kills) == (["preempt"], 0)
    bench.pass_time(2)
    assert bench.runner.kills == 1
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).status == Status.QUEUED
    assert bench.supervisor.is_idle


def test_a_runner_that_hangs_after_its_last_word_is_ended(bench: Bench) -> None:
    job_id = bench.begin()
    bench.says(DONE)
    bench.pass_time(5)
    assert bench.runner.kills == 0
    bench.pass_time(10)
    assert bench.runner.kills > 0
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).reason_code == "completed"


@pytest.mark.parametrize(
    ("ask", "ended", "last"),
    [
        ("nothing", DONE, "[END] succeeded (completed)"),
        ("nothing", Ended("data_invalid", "Row 7."), "[END] failed (data_invalid)"),
        ("nothing", None, "[END] failed (native_crash)"),
        ("nothing", Ended("disk_full", "", stopped="pause"), "[END] paused (disk_full)"),
        ("nothing", Ended("backoff", "", stopped="preempt"), "[END] queued (backoff)"),
        ("cancel", None, "[END] cancelled (user)"),
        ("cancel", Ended("user", "", stopped="cancel"), "[END] cancelled (user)"),
        ("pause", Ended("user", "", stopped="pause"), "[END] paused (user)"),
        ("pause, resume", Ended("user", "", stopped="pause"), "[END] queued (preempted)"),
        ("expire", Ended("max_runtime", "", stopped="expire"), "[END] failed (max_runtime)"),
        ("expire", None, "[END] failed (max_runtime)"),
    ],
)
def test_whoever_sees_a_job_ended_finds_its_report_and_a_log_that_ends_with_the_same_words(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ask: str, ended: Ended | None, last: str
) -> None:
    job_id = bench.begin(max_attempts=1, limits={"max_runtime_s": 5.0})
    log = next((bench.root / "logs").glob("*.txt"))
    (bench.attempt_directory / "report.md").write_text("# Report")
    for verb in ask.split(", "):
        if verb in ("cancel", "pause", "resume"):
            getattr(bench.queue, verb)(job_id)
    bench.pass_time(6.0 if ask == "expire" else 1.0)
    seen, report = [], bench.paths.job(job_id) / "report.md"
    for verb in ("finish", "release", "suspend", "crash"):
        watched(monkeypatch, verb, lambda: seen.append((bench.row(job_id), log.read_text(), report.exists())))
    if ended is not None:
        bench.says(ended)
    bench.dies(0 if ended is not None else -signal.SIGSEGV)
    [(row, text, is_reported)] = seen
    assert is_reported
    assert text.splitlines()[-1] == last == f"[END] {row.status} ({row.reason_code})"


def watched(monkeypatch: pytest.MonkeyPatch, verb: str, look: Callable[[], None]) -> None:
    """Look as soon as a verb's commit can be seen."""
    through = getattr(Queue, verb)

    def committed(self: Queue, *arguments: Any, **named: Any) -> Any:
        answer = through(self, *arguments, **named)
        look()
        return answer

    monkeypatch.setattr(Queue, verb, committed)


def test_the_log_of_a_worker_that_died_is_ended_by_the_next(bench: Bench) -> None:
    job_id = bench.begin()
    bench.supervisor.attempt = None
    bench.supervisor.arrive()
    log = bench.paths.log(bench.row(job_id).log_name).read_text()
    assert log.splitlines()[-2:] == [
        "[ERROR] The worker died while it ran the job.",
        "[END] queued (backoff)",
    ]


def test_an_order_to_end_stands(bench: Bench) -> None:
    job_id = bench.begin(limits={"max_runtime_s": 5.0})
    bench.queue.cancel(job_id)
    bench.pass_time(1.0)
    bench.pass_time(5.0)
    assert bench.runner.orders == ["cancel"]
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).status == Status.CANCELLED


@pytest.mark.parametrize("late", ["cancel", "max_runtime"])
def test_what_comes_after_the_last_word_changes_nothing(bench: Bench, late: str) -> None:
    job_id = bench.begin(limits={"max_runtime_s": 3.0})
    bench.says(DONE)
    if late == "cancel":
        bench.queue.cancel(job_id)
    bench.pass_time(5.0)
    bench.dies()
    assert bench.row(job_id).reason_code == "completed"


def test_a_cancel_outranks_a_pause(bench: Bench) -> None:
    job_id = bench.begin()
    bench.queue.pause(job_id)
    bench.pass_time(1.0)
    bench.queue.cancel(job_id)
    bench.pass_time(1.0)
    assert bench.runner.orders == ["pause", "cancel"]
    bench.pass_time(2.0)
    assert bench.runner.kills > 0
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).status == Status.CANCELLED


@pytest.mark.parametrize("foreign", ["{}", "[]", "not json", '{"comparison_key": "k", "metrics": {}}'])
def test_a_foreign_champion_is_replaced_not_stumbled_over(bench: Bench, foreign: str) -> None:
    bench.paths.champion().write_bytes(b"theirs")
    bench.paths.champion().with_suffix(".json").write_text(foreign)
    job_id = bench.begin_comparable("k")
    bench.says(bench.best(1, 1.0), DONE)
    bench.dies()
    assert bench.row(job_id).status == Status.SUCCEEDED
    assert json.loads(bench.paths.champion().with_suffix(".json").read_text())["metrics"] == {"val_loss": 1.0}


@pytest.mark.parametrize(
    ("val_loss", "key", "reigns"), [(0.5, "k", True), (1.5, "k", False), (1.5, "other", True)]
)
def test_the_champion_is_the_best_of_the_comparable(
    bench: Bench, val_loss: float, key: str, reigns: bool
) -> None:
    for loss, its_key in ((1.0, "k"), (val_loss, key)):
        bench.begin_comparable(its_key)
        bench.says(bench.best(1, loss), DONE)
        bench.dies()
    about = json.loads(bench.paths.champion().with_suffix(".json").read_text())
    assert (about["metrics"]["val_loss"] == val_loss) == reigns


def test_superseded_bests_go_and_the_newest_two_stay(bench: Bench) -> None:
    bench.begin()
    for epoch in range(1, 6):
        bench.says(bench.best(epoch, 1.0 / epoch))
    names = sorted(path.name[:10] for path in bench.attempt_directory.glob("best-*.pth"))
    assert names == ["best-e0004", "best-e0005"]


def test_a_best_beyond_the_last_commit_is_not_swept(bench: Bench) -> None:
    bench.begin()
    first, ahead = bench.best(1, 1.0), bench.best(2, 0.9)
    bench.says(first)
    bench.says(PhaseChanged("training"))
    assert (bench.attempt_directory / str(ahead.best and ahead.best.name)).exists()


def test_numbers_that_are_not_finite_are_null_not_an_error(bench: Bench) -> None:
    job_id = bench.begin()
    nan = float("nan")
    bench.says(Tested(loss=nan, accuracy=nan, confusion=[[0, 0], [0, 0]]))
    assert bench.row(job_id).test == {"loss": None, "accuracy": None, "confusion": [[0, 0], [0, 0]]}


def test_a_full_disk_pauses_the_job_until_there_is_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = bench.begin()
    bench.says(Ended("disk_full", "The disk is full.", stopped="pause", evidence={"needed_bytes": 2**60}))
    bench.dies()
    row = bench.row(job_id)
    assert (row.status, row.reason_code) == (Status.PAUSED, "disk_full")
    bench.pass_time(60)
    assert bench.row(job_id).status == Status.PAUSED
    monkeypatch.setattr("worker.supervisor.free_bytes", lambda _path: 2**61)
    bench.pass_time(60)
    assert bench.row(job_id).attempt == 2


def test_a_silent_runner_is_killed_and_named(bench: Bench) -> None:
    job_id = bench.begin(max_attempts=1)
    bench.says(PhaseChanged("training"))
    bench.looks_on(200)
    assert bench.runner.kills == 0
    bench.looks_on(200)
    assert bench.runner.kills > 0
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).reason_code == "stalled"


@pytest.mark.parametrize("is_heard", [True, False], ids=["an event waits", "the pipe is still full"])
def test_a_supervisor_that_was_stopped_itself_holds_its_absence_against_nobody(
    bench: Bench, is_heard: bool
) -> None:
    bench.begin()
    bench.says(PhaseChanged("training"))
    if is_heard:
        bench.runner.inbox.put(batch(1))
    bench.pass_time(8 * 3600)
    assert bench.runner.kills == 0
    bench.looks_on(400)
    assert bench.runner.kills > 0, "a runner that is silent from then on"


def test_no_process_is_ended_for_having_the_pid_of_an_earlier_worker(bench: Bench) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        owner = Owner(host=whoami().host, boot_id="of an earlier run", pid=stranger.pid, pid_start=1.0)
        job_id = str(bench.queue.submit(make_request())[0].id)
        assert bench.queue.claim(owner, slot_of(bench.paths.worker_slot())) is not None
        lock = bench.paths.worker_lock()
        lock.write_text(json.dumps({"pid": stranger.pid, "since": "yesterday"}))
        held = hold_slot(lock)
        assert held is not None
        with held:
            bench.supervisor.arrive()
        assert bench.row(job_id).status == Status.QUEUED
        assert stranger.poll() is None
        stranger.kill()


def test_a_commit_of_a_checkpoint_resets_the_count_of_crashes(bench: Bench) -> None:
    job_id = bench.begin()
    bench.dies(-signal.SIGKILL)
    assert bench.row(job_id).crashes == 1
    bench.pass_time(1.0)
    (bench.attempt_directory / "resume-s00000001-aa.pt").write_bytes(b"x")
    bench.says(CheckpointSaved("resume-s00000001-aa.pt", "a" * 64, 1, 1, 5, 1, False, None))
    assert bench.row(job_id).crashes == 0


def test_a_stop_while_the_database_is_away_gives_up_in_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.begin()
    for name in ("record", "finish", "release", "crash", "beat"):
        monkeypatch.setattr(Queue, name, away)
    bench.supervisor.stopping = True
    bench.pass_time(1.0)
    bench.runner.die()
    bench.pass_time(1.0)
    assert not bench.supervisor.is_stuck
    bench.pass_time(GIVE_UP_S + 1)
    assert bench.supervisor.is_stuck


@pytest.mark.parametrize(
    ("exit_code", "kills", "code", "word"),
    [
        (-signal.SIGSEGV, 0, "native_crash", "SIGSEGV"),
        (-signal.SIGKILL, 0, "internal", "SIGKILL"),
        (-signal.SIGKILL, 1, "host_out_of_memory", "memory"),
        (-40, 0, "internal", "40"),
        (3, 0, "internal", "exit code 3"),
    ],
    ids=["segfault", "killed", "oom", "real_time_signal", "exit"],
)
def test_every_death_has_a_name(exit_code: int, kills: int, code: str, word: str) -> None:
    reason = cause_of_death(exit_code, oom_kills_seen=kills)
    assert reason.code == code
    assert word in str(reason.message)


def test_the_kernels_kills_are_counted_in_the_container_first(tmp_path: Path) -> None:
    cgroup, host = tmp_path / "memory.events", tmp_path / "vmstat"
    host.write_text("nr_free_pages 5\noom_kill 7\n")
    assert oom_kills(cgroup, host) == 7
    cgroup.write_text("low 0\noom_kill 2\n")
    assert oom_kills(cgroup, host) == 2


def test_a_slot_that_is_no_longer_named_is_cleared(bench: Bench) -> None:
    job_id = bench.begin()
    settings = Settings(data_root=bench.root / "data", logs_root=bench.root / "logs", devices="cpu:0,cpu:1")
    spawner: Any = bench.spawner
    for device in settings.slots:
        Supervisor(settings, bench.queue, spawner, bench.said.append, device=device).arrive()
    assert bench.row(job_id).status == Status.QUEUED
    assert [row.machine["device"] for row in bench.queue.workers()] in (
        ["cpu:0", "cpu:1"],
        ["cpu:1", "cpu:0"],
    )


@pytest.mark.parametrize(
    ("slots", "device", "left"),
    [
        ((None,), None, ()),
        (("cuda:0", "cuda:1"), "cuda:1", ("cuda:0",)),
        (("cpu:0", "cuda:0"), "cpu:0", ("cuda:0", "cuda")),
        (("cpu:0", "cpu:1"), "cpu:0", ("cpu:1",)),
    ],
    ids=["one", "gpus", "mixed", "cpus"],
)
def test_what_a_slot_leaves_to_others(
    slots: tuple[str | None, ...], device: str | None, left: tuple[str, ...]
) -> None:
    assert others(slots, device) == left
