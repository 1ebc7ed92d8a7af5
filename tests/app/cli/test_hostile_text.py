"""What a terminal is never sent, whoever wrote it: a model, a library, a dataset, another service."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from app.cli.console import stdout
from app.jobs.queue import Facts, Reason
from tests.app.api.service import epoch
from tests.app.cli.call import saimp
from tests.app.datasets.make import table, write
from tests.app.live import Live
from tests.app.stub import Answer, stub

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\0"
RAW = ("\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\0")
JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def assert_safe(text: str) -> None:
    assert not [character for character in RAW if character in text]


def test_a_log_of_a_service_that_escapes_nothing_is_escaped() -> None:
    log = f"{EVIL}\tépoque\nnext\r\n"
    offset = {"Next-Offset": "50"}
    with stub([Answer(200, log.encode(), offset), Answer(200, b"", offset)]) as service:
        result = saimp("logs", JOB, url=service.url)
    assert_safe(result.stdout)
    assert result.stdout == r"\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp\u2066\x00" "\tépoque\nnext\\x0d\n"


def test_show_and_ls_escape_what_an_exception_said(live: Live) -> None:
    claim = live.claimed(name="run")
    live.save(claim, b"weights")
    live.queue.record(claim.job_id, claim.attempt, Facts(epochs=[epoch(1, [[5, 1], [2, 2]])]))
    said = f"boom {EVIL}\nstatus     succeeded"
    live.queue.finish(claim.job_id, claim.attempt, Reason("internal", said, f"try {EVIL}"))
    for arguments in (("show", claim.job_id), ("ls",), ("watch", claim.job_id)):
        result = saimp(*arguments, url=live.url)
        assert_safe(result.output)
        assert r"boom \x1b]0;owned" in result.output.replace("\n", "")
    assert "\nstatus     succeeded" not in saimp("show", claim.job_id, url=live.url).stdout


def test_json_is_escaped_by_its_own_rules_and_says_the_same(live: Live) -> None:
    claim = live.claimed(name="run é漢")
    live.queue.finish(claim.job_id, claim.attempt, Reason("internal", f"boom {EVIL}"))
    printed = saimp("show", claim.job_id, "-o", "json", url=live.url).stdout
    assert_safe(printed)
    assert "run é漢" in printed
    # A database stores no NUL.
    assert json.loads(printed)["reason"]["message"] == f"boom {EVIL}".replace("\0", "\ufffd")


def test_a_problem_of_a_strange_service_is_escaped() -> None:
    body = {"detail": EVIL, "code": "x", "hint": EVIL, "errors": [{"pointer": EVIL, "message": EVIL}]}
    answer = Answer(422, body, {"Content-Type": "application/problem+json"})
    with stub([answer]) as service:
        result = saimp("submit", "--path", "demo", url=service.url)
    assert result.exit_code == 2
    assert_safe(result.output)


def test_tables_keep_their_rows(capsys: pytest.CaptureFixture[str]) -> None:
    stdout().print(f"a {EVIL} b", soft_wrap=True)
    assert_safe(capsys.readouterr().out)


@pytest.mark.parametrize("name", [EVIL, "a\nb", "\u202eabc", "\0", "x\u2028"], ids=ascii)
def test_class_names_in_a_dataset_obey_the_rule_of_data_classes(live: Live, name: str) -> None:
    rows = table(100, label=pa.array([0, 1] * 50))
    root = live.services.settings.data_root
    write(root, "evil.parquet", rows, metadata={"version": 1, "classes": ["flat", name]})
    answer = live.client.post("/jobs", json={"data": {"path": "evil.parquet", "window": 4}})
    (problem,) = answer.json()["errors"]
    assert (answer.status_code, problem["code"]) == (422, "bad_metadata")
    assert "malformed at classes/1: must be printable characters" in problem["message"]
    for arguments in (
        ("submit", "--path", "evil.parquet"),
        ("data", "inspect", "evil.parquet", "--data-root", root),
    ):
        result = saimp(*arguments, url=live.url)
        assert result.exit_code != 0
        assert_safe(result.output)
