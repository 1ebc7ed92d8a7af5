"""The commands on jobs, against the real application."""

from __future__ import annotations

import json
import re
import signal
import threading
from pathlib import Path

import pytest

from app.jobs.queue import Facts, Reason
from tests.app.api.service import batch, epoch
from tests.app.cli.call import saimp
from tests.app.live import Live
from tests.processes import started

DONE = Reason("completed", "All epochs are done.")
BROKEN = Reason("data_invalid", "Row 7 of part-000.parquet holds NaN.", "Set data.non_finite.")
SET = ("--set", "data.window=4")


def finished(live: Live, reason: Reason = DONE) -> str:
    """Make a job that has run and ended."""
    claim = live.claimed(name="run")
    live.save(claim, b"weights")
    plan = {"splits": {"train": {"class_counts": [2, 8]}}}
    test = {"loss": 0.5, "accuracy": 0.75, "confusion": [[1, 1], [0, 2]]}
    told = {"resolved": {"classes": ["down", "up"]}, "plan": plan, "test": test}
    live.queue.record(claim.job_id, claim.attempt, Facts(progress=told))
    rows = [epoch(1, [[5, 1], [2, 2]])]
    live.queue.record(claim.job_id, claim.attempt, Facts(epochs=rows, batches=[batch(1, 0)]))
    live.queue.finish(claim.job_id, claim.attempt, reason)
    return claim.job_id


def test_submit_prints_the_id_and_talks_beside_it(live: Live) -> None:
    result = saimp("submit", "--path", "demo", "--name", "mine", *SET, url=live.url)
    assert result.exit_code == 0, result.output
    job_id = result.stdout.strip()
    assert re.fullmatch(r"[0-9A-Z]{26}", job_id)
    assert f"{live.url}/jobs/{job_id}" in result.stderr
    assert "queued #1 mine" in result.stderr
    assert live.queue.get(job_id).config["data"]["window"] == 4
    assert saimp("cancel", job_id, url=live.url).exit_code == 0


def test_submit_reads_stdin_and_writes_json(live: Live) -> None:
    body = json.dumps({"data": {"path": "demo", "window": 4}})
    result = saimp("submit", "-", "-o", "json", url=live.url, stdin=body)
    job = json.loads(result.stdout)
    assert job["status"] == "queued"
    cancelled = json.loads(saimp("cancel", "@last", "-o", "json", url=live.url).stdout)
    assert (cancelled["id"], cancelled["status"]) == (job["id"], "cancelled")


def test_a_dry_run_shows_the_plan_and_queues_nothing(live: Live) -> None:
    before = saimp("ls", url=live.url).stdout
    result = saimp("submit", "--path", "demo", *SET, "--dry-run", url=live.url)
    assert result.exit_code == 0, result.output
    assert re.search(r"train +\d+ windows of 320 rows", result.stdout)
    assert "15 samples" in result.stdout
    plan = json.loads(saimp("submit", "--path", "demo", *SET, "--dry-run", "-o", "json", url=live.url).stdout)
    assert plan["splits"]["val"]["rows"] == 80
    assert saimp("ls", url=live.url).stdout == before


def test_a_refused_body_lists_every_problem(live: Live) -> None:
    result = saimp("submit", "--path", "nowhere", "--set", "training.epoch=3", url=live.url)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "/data/path" in result.stderr
    assert "/training/epoch" in result.stderr
    assert "epochs" in result.stderr


def test_ls_is_tabs_for_a_pipe(live: Live) -> None:
    job_id = finished(live)
    lines = [line.split("\t") for line in saimp("ls", "-n", 1, url=live.url).stdout.splitlines()]
    assert lines[0] == ["ID", "NAME", "STATUS", "EPOCH", "VAL LOSS", "ACC", "STARTED", "TOOK", "NOTE"]
    assert lines[1][:3] == [job_id, "run", "succeeded"]
    assert lines[1][4:6] == ["1.0000 (e1)", "50.0 %"]
    listed = json.loads(saimp("ls", "--status", "succeeded", "-q", "run", "-o", "json", url=live.url).stdout)
    assert listed[0]["id"] == job_id


def test_ls_reads_page_after_page(live: Live) -> None:
    ids = [live.job() for _ in range(3)]
    listed = json.loads(saimp("ls", "-n", 2, "--status", "queued", "-o", "json", url=live.url).stdout)
    assert [job["id"] for job in listed] == ids[:0:-1]
    for job_id in ids:
        live.queue.cancel(job_id)


def test_show_tells_the_story_and_the_scores(live: Live) -> None:
    job_id = finished(live)
    shown = saimp("show", job_id[:20], url=live.url).stdout
    assert job_id in shown
    assert "succeeded" in shown
    # Of [[5, 1], [2, 2]]: "up" is most frequent in training, "down" here.
    assert "F1 of always up" in shown
    assert re.search(r"accuracy +0\.700 +0\.400", shown)
    assert re.search(
        r"best +epoch 1: val loss 1\.0000, accuracy 50\.0 %, macro-F1 0\.\d+ \(always up 0\.\d+\)", shown
    )
    assert re.search(r"test +loss 0\.5000, accuracy 75\.0 %, macro-F1 0\.733 \(always up 0\.333\)", shown)
    assert json.loads(saimp("show", "@last", "-o", "json", url=live.url).stdout)["id"] == job_id


@pytest.mark.parametrize("command", ["show", "watch", "logs", "cancel", "pull"])
def test_a_job_that_is_not_there_is_exit_code_3(live: Live, command: str) -> None:
    for reference in ("01M84200KAP2K3MRRRT24N6S6M", "0000", "../x"):
        result = saimp(command, reference, url=live.url)
        assert result.exit_code == 3, result.output
        assert "saimp ls" in result.stderr or "GET /jobs" in result.stderr


def test_an_id_of_several_jobs_is_a_usage_error(live: Live) -> None:
    finished(live)
    finished(live)
    result = saimp("show", "01", url=live.url)
    assert result.exit_code == 2
    assert "Write more of the id" in result.stderr


def test_watch_exits_as_the_job_ended(live: Live) -> None:
    good, bad = finished(live), finished(live, BROKEN)
    result = saimp("watch", good, url=live.url)
    assert result.exit_code == 0
    assert "✓ succeeded (completed), best val loss 1.0000 at epoch 1" in result.stdout
    result = saimp("watch", bad, url=live.url)
    assert result.exit_code == 1
    assert "✗ failed (data_invalid)" in result.stdout
    assert "Row 7 of part-000.parquet holds NaN." in result.stdout
    assert "Set data.non_finite." in result.stdout


def test_watch_as_json_writes_the_job_alone(live: Live) -> None:
    job_id = finished(live)
    result = saimp("watch", job_id, "-o", "json", url=live.url)
    assert json.loads(result.stdout)["id"] == job_id
    assert "macro-F1" in result.stderr


def test_watch_follows_a_running_job(live: Live) -> None:
    claim = live.claimed()
    first = threading.Timer(0.4, live.queue.record, (claim.job_id, claim.attempt, Facts(epochs=[epoch(1)])))
    last = threading.Timer(
        0.9, live.queue.finish, (claim.job_id, claim.attempt, DONE, Facts(epochs=[epoch(2)]))
    )
    for timer in (first, last):
        timer.start()
    result = saimp("watch", claim.job_id, url=live.url)
    for timer in (first, last):
        timer.join()
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines() if "★" in line] == ["1/?", "2/?"]


def test_ctrl_c_lets_go_of_the_job(live: Live, tmp_path: Path) -> None:
    claim = live.claimed()
    live.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch(1)]))
    arguments = ("-m", "app.cli.main", "watch", claim.job_id)
    with started(*arguments, root=tmp_path, SAIMP_URL=live.url) as watching:
        watching.says("1/?")
        assert watching.stop(signal.SIGINT) == 130
        assert f"the job goes on. To come back: saimp watch {claim.job_id[:10]}" in watching.output
    assert live.queue.get(claim.job_id).status == "running"
    live.queue.finish(claim.job_id, claim.attempt, DONE)


def test_logs_print_the_text(live: Live) -> None:
    job_id = live.logged(b"one\ntwo\n")
    assert saimp("logs", job_id, url=live.url).stdout == "one\ntwo\n"
    assert saimp("logs", job_id, "-n", 1, url=live.url).stdout == "two\n"
    live.queue.finish(job_id, live.queue.get(job_id).attempt, DONE)
    assert saimp("logs", "-f", job_id, "--tail", 1, url=live.url).stdout == "two\n"


def test_pull_prints_the_path(live: Live, tmp_path: Path) -> None:
    job_id = finished(live)
    result = saimp("pull", job_id, "-o", tmp_path, url=live.url)
    assert result.stdout.strip() == str(tmp_path / "saimp_best.pth")
    assert (tmp_path / "saimp_best.pth").read_bytes() == b"weights"
    assert saimp("pull", job_id, "-o", tmp_path / "no" / "file.pth", url=live.url).exit_code == 2
