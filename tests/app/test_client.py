"""The client: against a network that misbehaves, then against the real application."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.client import (
    AmbiguousId,
    Client,
    DigestMismatch,
    JobUnknown,
    ServerAway,
    ServiceProblem,
    find_token,
)
from app.jobs.queue import Facts, Reason
from app.settings import Settings
from tests.app.api.service import batch, epoch
from tests.app.live import Live, live_service
from tests.app.stub import Answer, stub

JOB = "01M84200KAP2K3MRRRT24N6S6M"
OTHER = "01M84200KAP2K3MRRRT24N6S7X"
WEIGHTS = bytes(range(256)) * 4096
BETTER = WEIGHTS[::-1]
DONE = Reason("completed", "All epochs are done.")


def announced(content: bytes, **headers: str) -> dict[str, str]:
    """The headers of a checkpoint."""
    digest = hashlib.sha256(content)
    shown = base64.b64encode(digest.digest()).decode()
    return {"ETag": f'"{digest.hexdigest()}"', "Repr-Digest": f"sha-256=:{shown}:", **headers}


def whole(content: bytes, breaks_at: int | None = None) -> Answer:
    return Answer(200, content, announced(content), breaks_at)


def rest(content: bytes, start: int) -> Answer:
    headers = announced(content, **{"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"})
    return Answer(206, content[start:], headers)


def quick(url: str, token: str | None = None, patience_s: float = 2.0) -> Client:
    return Client(url, token, patience_s=patience_s, sleep=lambda _: None)


def test_a_problem_arrives_whole() -> None:
    errors = [{"pointer": "/training/epochs", "code": "out_of_range", "message": "too low", "hint": "use 1"}]
    body = {"title": "Invalid.", "detail": "One problem.", "code": "invalid_request", "errors": errors}
    with (
        stub([Answer(422, body)]) as server,
        quick(server.url) as client,
        pytest.raises(ServiceProblem) as caught,
    ):
        client.submit({})
    problem = caught.value
    assert (problem.status, problem.code, problem.detail) == (422, "invalid_request", "One problem.")
    assert problem.errors == errors


def test_an_error_without_a_problem_is_still_one() -> None:
    with (
        stub([Answer(500, b"<html>oops</html>")]) as server,
        quick(server.url) as client,
        pytest.raises(ServiceProblem, match="the service answered 500") as caught,
    ):
        client.jobs()
    assert caught.value.code == "http_500"


def test_a_service_that_restarts_is_waited_for() -> None:
    script = [Answer(503), Answer(502), Answer(200, {"id": JOB})]
    with stub(script) as server, quick(server.url) as client:
        assert client.job(JOB) == {"id": JOB}
    assert len(server.requests) == 3


def test_a_repeated_submit_carries_the_same_key() -> None:
    script = [Answer(503), Answer(201, {"id": JOB})]
    with stub(script) as server, quick(server.url) as client:
        client.submit({"data": {"path": "demo"}})
    keys = [request.headers["Idempotency-Key"] for request in server.requests]
    assert len(keys) == 2
    assert len(set(keys)) == 1
    assert json.loads(server.requests[1].body) == {"data": {"path": "demo"}}


def test_nobody_there_is_named_soon() -> None:
    began = time.monotonic()
    with (
        Client("http://127.0.0.1:1", patience_s=0.2) as client,
        pytest.raises(ServerAway, match=r"no answer from http://127\.0\.0\.1:1"),
    ):
        client.jobs()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://[", "http://127.0.0.1:x"])
def test_a_url_that_is_none_is_nobody_there(url: str) -> None:
    with pytest.raises(ServerAway), quick(url, patience_s=0.0) as client:
        client.jobs()


def test_the_token_is_sent() -> None:
    with stub([Answer(200, {"data": []})]) as server:
        with quick(server.url, "secret") as client:
            client.jobs()
        with quick(server.url) as client:
            client.jobs()
    assert server.requests[0].headers["Authorization"] == "Bearer secret"
    assert "Authorization" not in server.requests[1].headers


def test_the_token_comes_from_the_settings_or_the_file(tmp_path: Path) -> None:
    assert find_token(Settings(data_root=tmp_path)) is None
    (tmp_path / ".token").write_text("from-file\n")
    assert find_token(Settings(data_root=tmp_path)) == "from-file"
    assert find_token(Settings(data_root=tmp_path, token="given")) == "given"


def test_an_id_is_found_by_its_beginning() -> None:
    page = {"data": [{"id": OTHER}, {"id": JOB}], "has_more": False, "next_after": None}
    with stub([Answer(200, page)]) as server, quick(server.url) as client:
        assert client.resolve(JOB.lower()) == JOB
        assert server.requests == []
        assert client.resolve(JOB[:25]) == JOB
        assert client.resolve("@last") == OTHER
        with pytest.raises(AmbiguousId, match=JOB):
            client.resolve(JOB[:10])
        with pytest.raises(JobUnknown):
            client.resolve("9")
        with pytest.raises(JobUnknown):
            client.resolve("../../etc")


def test_an_id_never_leaves_its_place_in_the_path() -> None:
    with (
        stub([Answer(200, {})]) as server,
        quick(server.url) as client,
        pytest.raises(JobUnknown),
    ):
        client.job("../metrics")
    assert server.requests == []


def test_pull_writes_the_file_and_reports(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    with stub([whole(WEIGHTS)]) as server, quick(server.url) as client:
        path = client.pull(JOB, tmp_path, report=lambda done, total: seen.append((done, total)))
    assert path == tmp_path / "saimp_best.pth"
    assert path.read_bytes() == WEIGHTS
    assert seen[-1] == (len(WEIGHTS), len(WEIGHTS))
    assert list(tmp_path.iterdir()) == [path]


def test_pull_of_what_is_there_downloads_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").write_bytes(WEIGHTS)
    with stub([whole(WEIGHTS)]) as server, quick(server.url) as client:
        client.pull(JOB, tmp_path / "mine.pth")
    paths = [(request.method, request.path.rpartition("/")[2]) for request in server.requests]
    assert paths == [("HEAD", "checkpoint"), ("GET", "saimp_best.json")]


def test_pull_goes_on_where_the_connection_broke(tmp_path: Path) -> None:
    script = [whole(WEIGHTS), whole(WEIGHTS, breaks_at=300_000), rest(WEIGHTS, 300_000)]
    with stub(script) as server, quick(server.url) as client:
        path = client.pull(JOB, tmp_path)
    assert path.read_bytes() == WEIGHTS
    asked = server.requests[2].headers
    assert asked["Range"] == "bytes=300000-"
    assert asked["If-Range"] == announced(WEIGHTS)["ETag"]


def test_pull_goes_on_from_a_part_left_by_an_earlier_call(tmp_path: Path) -> None:
    broken = [whole(WEIGHTS), whole(WEIGHTS, breaks_at=300_000), Answer(503)]
    with (
        stub(broken) as server,
        quick(server.url, patience_s=0.0) as client,
        pytest.raises(ServerAway),
    ):
        client.pull(JOB, tmp_path)
    assert not (tmp_path / "saimp_best.pth").exists()
    with stub([whole(WEIGHTS), rest(WEIGHTS, 300_000)]) as server, quick(server.url) as client:
        assert client.pull(JOB, tmp_path).read_bytes() == WEIGHTS
    assert server.requests[1].headers["Range"] == "bytes=300000-"


def test_pull_takes_the_newer_best_when_there_is_one(tmp_path: Path) -> None:
    script = [whole(WEIGHTS), whole(WEIGHTS, breaks_at=300_000), whole(BETTER)]
    with stub(script) as server, quick(server.url) as client:
        path = client.pull(JOB, tmp_path)
    assert path.read_bytes() == BETTER
    assert list(tmp_path.iterdir()) == [path]


def test_pull_of_a_damaged_file_keeps_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "saimp_best.pth").write_bytes(b"old")
    damaged = Answer(200, BETTER, announced(WEIGHTS))
    with (
        stub([damaged]) as server,
        quick(server.url) as client,
        pytest.raises(DigestMismatch),
    ):
        client.pull(JOB, tmp_path)
    assert (tmp_path / "saimp_best.pth").read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


def test_pull_of_a_file_without_a_digest_is_refused(tmp_path: Path) -> None:
    with (
        stub([Answer(200, WEIGHTS)]) as server,
        quick(server.url) as client,
        pytest.raises(DigestMismatch),
    ):
        client.pull(JOB, tmp_path)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_service(tmp_path_factory.mktemp("live")) as running:
        yield running


@pytest.fixture
def client(live: Live) -> Iterator[Client]:
    with Client(live.url) as client:
        yield client


BODY = {"data": {"path": "demo", "window": 4}}


def test_submit_plan_read_list_cancel(client: Client) -> None:
    assert client.plan(BODY)["splits"]["train"]["windows"] > 0
    job = client.submit({**BODY, "name": "one", "tags": ["mine"]})
    assert client.job(job["id"])["name"] == "one"
    assert [found["id"] for found in client.jobs(tag="mine", status=["queued"])["data"]] == [job["id"]]
    assert client.resolve("@last") == job["id"]
    assert client.resolve(job["id"][:-1]) == job["id"]
    assert client.cancel(job["id"])["status"] == "cancelled"
    assert client.wait(job["id"])["reason"]["code"] == "user"
    assert [event["kind"] for event in client.events(job["id"])["data"]] == ["submitted", "finished"]


def test_every_problem_of_a_body_at_once(client: Client) -> None:
    with pytest.raises(ServiceProblem) as caught:
        client.submit({"data": {"path": "demo"}, "training": {"epochs": 0, "batch": 3}})
    assert {error["pointer"] for error in caught.value.errors} >= {"/training/epochs", "/training/batch"}


def test_metrics_go_on_behind_the_cursor(live: Live, client: Client) -> None:
    claim = live.claimed()
    live.queue.record(claim.job_id, claim.attempt, Facts(batches=[batch(1, 0)]))
    first = client.metrics(claim.job_id)
    live.queue.record(claim.job_id, claim.attempt, Facts(batches=[batch(1, 10)], epochs=[epoch(1)]))
    second = client.metrics(claim.job_id, after=first["next_after"], wait=5)
    assert (first["batches"]["batch"], second["batches"]["batch"]) == ([0], [10])
    assert second["epochs"][0]["epoch"] == 1
    assert client.metrics(claim.job_id, scope=("epoch",))["batches"]["batch"] == []
    live.queue.finish(claim.job_id, claim.attempt, DONE)


def test_logs_follow_to_the_end(live: Live, client: Client) -> None:
    job_id = live.logged("eins\nzwei ✓\n".encode())
    name = live.queue.get(job_id).log_name
    pieces = client.logs(job_id, follow=True, poll_s=0.01)
    assert next(pieces) == "eins\nzwei ✓\n"
    with live.paths.log(name).open("a") as file:
        file.write("drei\n")
    live.queue.finish(job_id, live.queue.get(job_id).attempt, DONE)
    assert "".join(pieces) == "drei\n"
    assert client.log(job_id, tail=1)[0] == "drei\n"


def test_the_log_of_a_job_that_has_not_run_is_empty(live: Live, client: Client) -> None:
    job_id = live.job()
    assert client.log(job_id) == ("", 0)
    client.cancel(job_id)


def test_wait_sees_the_end(live: Live, client: Client) -> None:
    claim = live.claimed()
    timer = threading.Timer(0.3, live.queue.finish, (claim.job_id, claim.attempt, DONE))
    timer.start()
    assert client.wait(claim.job_id, timeout_s=20)["status"] == "succeeded"
    timer.join()


def test_wait_gives_up_at_its_timeout(live: Live, client: Client) -> None:
    job_id = live.job()
    with pytest.raises(TimeoutError):
        client.wait(job_id, timeout_s=0.3)
    client.cancel(job_id)


def test_pull_from_the_real_service(live: Live, client: Client, tmp_path: Path) -> None:
    job_id = live.saved(WEIGHTS)
    part = tmp_path / f".saimp_best.pth.{hashlib.sha256(WEIGHTS).hexdigest()[:16]}.part"
    part.write_bytes(WEIGHTS[:1000])
    assert client.pull(job_id, tmp_path).read_bytes() == WEIGHTS
    live.queue.finish(job_id, live.queue.get(job_id).attempt, DONE)


def test_pull_before_the_first_best_is_not_found(live: Live, client: Client, tmp_path: Path) -> None:
    job_id = live.job()
    with pytest.raises(ServiceProblem) as caught:
        client.pull(job_id, tmp_path)
    assert caught.value.status == 404
    client.cancel(job_id)
