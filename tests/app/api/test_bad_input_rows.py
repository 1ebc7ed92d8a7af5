"""The bad inputs of the API by number of the table they come from, over real sockets.

What they answer in detail is tested beside; here each row comes the way a hostile client brings it.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from app.jobs.queue.records import CANCELLED
from tests.app.live import Live, live_service

NO_JOB = "01ARZ3NDEKTSV4RRFFQ69G5FAV"
JSON = "Content-Type: application/json"
DEMO = '"data": {"path": "demo"}'


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_service(Path(tmp_path_factory.mktemp("live"))) as running:
        yield running


@dataclass(frozen=True)
class Answer:
    status: int
    head: str
    body: bytes

    @property
    def codes(self) -> dict[str, str]:
        """The problem's own code at "", and each error's at its pointer."""
        problem = json.loads(self.body)
        assert "application/problem+json" in self.head
        return {"": problem["code"]} | {one["pointer"]: one["code"] for one in problem["errors"]}


def send(
    live: Live,
    line: str,
    *headers: str,
    body: bytes = b"",
    host: str | None = None,
    rest: Iterable[bytes] = (),
) -> Answer:
    """Send a request as these very bytes; host "" sends none."""
    address = live.url.removeprefix("http://")
    named = [f"Host: {address if host is None else host}"] if host != "" else []
    length = [] if any("chunked" in one for one in headers) else [f"Content-Length: {len(body)}"]
    head = "\r\n".join([f"{line} HTTP/1.1", *named, "Connection: close", *length, *headers, "", ""])
    name, _, port = address.partition(":")
    with socket.create_connection((name, int(port)), timeout=30) as connection:
        try:
            connection.sendall(head.encode("latin-1") + body)
            for piece in rest:
                connection.sendall(piece)
        except OSError:
            pass  # it has answered and hung up
        received = b""
        try:
            while piece := connection.recv(2**16):
                received += piece
        except ConnectionResetError:
            pass
    top, _, content = received.partition(b"\r\n\r\n")
    return Answer(int(top.split()[1]), top.decode("latin-1").lower(), content)


def posted(live: Live, text: str | bytes, *headers: str) -> Answer:
    body = text if isinstance(text, bytes) else text.encode()
    return send(live, "POST /jobs", *(headers or (JSON,)), body=body)


BODIES: dict[str, tuple[str | bytes, int, dict[str, str]]] = {
    "1 NaN": (f'{{{DEMO}, "optimizer": {{"lr": NaN}}}}', 422, {"/optimizer/lr": "not_finite"}),
    "1 1e400": (f'{{{DEMO}, "optimizer": {{"lr": 1e400}}}}', 422, {"/optimizer/lr": "not_finite"}),
    "2 half a pair": (f'{{{DEMO}, "name": "\\ud800"}}', 422, {"/name": "invalid_unicode"}),
    "3 NUL": (f'{{{DEMO}, "name": "a\\u0000"}}', 422, {"/name": "control_character"}),
    "4 5000 digits": (
        f'{{{DEMO}, "training": {{"seed": {"9" * 5000}}}}}',
        422,
        {"/training/seed": "out_of_range"},
    ),
    "4 2^63": (f'{{{DEMO}, "training": {{"seed": {2**63}}}}}', 422, {"/training/seed": "out_of_range"}),
    "5 deep lists": ("[" * 100_000, 400, {"": "too_deep"}),
    "5 deep objects": ('{"a":' * 100_000, 400, {"": "too_deep"}),
    "7 unknown": (
        f'{{{DEMO}, "training": {{"batchsize": 3}}}}',
        422,
        {"/training/batchsize": "unknown_field"},
    ),
    "8 twice": ('{"data": {"path": "demo", "path": "x"}}', 400, {"": "duplicate_key"}),
    "9 strict": (
        f'{{{DEMO}, "optimizer": {{"lr": "0.5"}}, "training": {{"epochs": true}}}}',
        422,
        {"/optimizer/lr": "wrong_type", "/training/epochs": "wrong_type"},
    ),
    "10 empty": ("", 422, {"": "empty_body"}),
    "10 UTF-8": (b'{"data": {"path": "\xff"}}', 400, {"": "invalid_json"}),
    "11 bounds": (
        f'{{{DEMO}, "optimizer": {{"lr": 0, "weight_decay": -1}}, "early_stopping": {{"patience": -1}},'
        '"training": {"epochs": 1000000000, "batch_size": 0, "accumulation_steps": 0}}',
        422,
        dict.fromkeys(
            (
                "/optimizer/lr",
                "/optimizer/weight_decay",
                "/early_stopping/patience",
                "/training/epochs",
                "/training/batch_size",
                "/training/accumulation_steps",
            ),
            "out_of_range",
        ),
    ),
    "12 weights": (
        f'{{{DEMO}, "loss": {{"class_weights": [1, 2]}}}}',
        422,
        {"/loss/class_weights": "class_weights_length"},
    ),
    "13 split": (
        '{"data": {"path": "demo", "split": {"train": 0.9999, "val": 0.0001}}}',
        422,
        {"/data/split": "empty_split"},
    ),
    "13 embargo": (
        '{"data": {"path": "demo", "embargo_s": 100000000}}',
        422,
        {"/data/split": "empty_split"},
    ),
    "16 out": ('{"data": {"path": "../../etc"}}', 422, {"/data/path": "path_outside_data_root"}),
    "16 file:": ('{"data": {"path": "file:///etc"}}', 422, {"/data/path": "path_outside_data_root"}),
    "16 %2e": ('{"data": {"path": "%2e%2e/x"}}', 422, {"/data/path": "path_outside_data_root"}),
    "16 ;..": ('{"data": {"path": "x;.."}}', 422, {"/data/path": "path_outside_data_root"}),
    "17 escape": (f'{{{DEMO}, "name": "\\u001b[31m"}}', 422, {"/name": "control_character"}),
    "17 direction": (f'{{{DEMO}, "name": "\\u202eabc"}}', 422, {"/name": "invalid_value"}),
    "17 long": (f'{{{DEMO}, "name": "{"x" * 10_000}"}}', 422, {"/name": "out_of_range"}),
    "19 _target_": (
        f'{{{DEMO}, "model": {{"name": "vivit", "_target_": "os.system"}}}}',
        422,
        {"/model/_target_": "unknown_field"},
    ),
    "19 custom": (
        f'{{{DEMO}, "model": {{"name": "custom", "target": "os:system"}}}}',
        422,
        {"/model/target": "custom_model_not_allowed"},
    ),
    "20 URL": (f'{{{DEMO}, "init_from": "http://x/y.pth"}}', 422, {"/init_from": "invalid_value"}),
    "20 unknown": (f'{{{DEMO}, "init_from": "{NO_JOB}"}}', 422, {"/init_from": "job_not_found"}),
}


@pytest.mark.parametrize(("text", "status", "codes"), BODIES.values(), ids=BODIES.keys())
def test_a_bad_body_gets_its_named_answer(
    live: Live, text: str | bytes, status: int, codes: dict[str, str]
) -> None:
    answer = posted(live, text)
    assert answer.status == status
    assert {pointer: answer.codes.get(pointer) for pointer in codes} == codes
    assert status != 422 or codes.keys() >= answer.codes.keys() - {""}, "no more than what is wrong"
    assert len(answer.body) < 4096
    assert str(live.services.settings.data_root).encode() not in answer.body


def test_6_a_large_body_is_refused_while_it_comes(live: Live) -> None:
    pieces = (b"10000\r\n" + b" " * 2**16 + b"\r\n" for _ in range(800))
    answer = send(live, "POST /jobs", JSON, "Transfer-Encoding: chunked", rest=pieces)
    assert (answer.status, answer.codes[""]) == (413, "body_too_large")
    assert next(pieces, None) is not None, "it was not read to its end"


def test_10_another_type_is_refused(live: Live) -> None:
    assert posted(live, f"{{{DEMO}}}", "Content-Type: text/plain").status == 415


@pytest.mark.parametrize("name", [r"$\frac{", "</script>", "=cmd()"])
def test_17_a_name_is_only_text(live: Live, name: str) -> None:
    job = json.loads(posted(live, json.dumps({"data": {"path": "demo"}, "name": name})).body)
    assert job["name"] == name
    picture = send(live, f"GET /jobs/{job['id']}/plot")
    assert picture.body.startswith(b"\x89PNG")


@pytest.mark.parametrize("job_id", ["abc", NO_JOB, NO_JOB.lower(), "%00", "..", "x" * 5000])
@pytest.mark.parametrize("verb", ["GET", "HEAD", "DELETE"])
def test_21_an_id_that_is_none_is_not_found(live: Live, verb: str, job_id: str) -> None:
    assert send(live, f"{verb} /jobs/{job_id}").status in (404, 405 if job_id == ".." else 404)


@pytest.mark.parametrize("query", ["limit=-1", "limit=1000000000", "after=abc"])
def test_22_a_bad_page_is_refused(live: Live, query: str) -> None:
    answer = send(live, f"GET /jobs?{query}")
    assert (answer.status, answer.codes[""]) == (422, "invalid_request")


def test_22_a_foreign_cursor_is_refused(live: Live) -> None:
    assert send(live, f"GET /jobs/{live.job()}/metrics?after=abc").codes["/query/after"] == "bad_cursor"


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ("bytes=" + ",".join(["0-0"] * 10_000), 416),
        ("bytes=0-5,2-9", 416),
        ("bytes=999999-", 416),
        ("bytes=-0", 416),
        ("bytes=2-3", 206),
        ("bytes=" + "9" * 5000 + "-", 200),
    ],
    ids=["10000", "overlapping", "beyond", "none", "one", "digits"],
)
def test_23_ranges_cannot_be_abused(live: Live, wanted: str, status: int) -> None:
    job_id = live.saved(b"weights" * 100)
    try:
        answer = send(live, f"GET /jobs/{job_id}/checkpoint", f"Range: {wanted}")
        assert answer.status in (status, 400 if len(wanted) > 16_000 else status)
        assert len(answer.body) <= 700
    finally:
        live.queue.cancel(job_id)
        live.queue.finish(job_id, 1, CANCELLED)


@pytest.mark.parametrize(
    "host", ["evil.com", "x/?", "127.0.0.1, evil.com", "user@127.0.0.1", "", "a\r\nHost: b"]
)
def test_24_another_host_is_not_answered(live: Live, host: str) -> None:
    assert send(live, "GET /healthz", host=host).status in (400, 421)


@pytest.mark.parametrize("verb", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("header", ["Origin: http://evil.com", "Origin: null", "Sec-Fetch-Site: cross-site"])
def test_25_a_page_of_another_site_changes_nothing(live: Live, verb: str, header: str) -> None:
    answer = send(live, f"{verb} /jobs/{NO_JOB}", JSON, header, body=b"{}")
    assert (answer.status, answer.codes[""]) == (403, "cross_site")


def test_27_a_key_with_another_body_is_refused(live: Live) -> None:
    key = "Idempotency-Key: once"
    first, again = (posted(live, f"{{{DEMO}}}", JSON, key) for _ in range(2))
    assert (first.status, again.status) == (201, 200)
    other = posted(live, f'{{{DEMO}, "name": "other"}}', JSON, key)
    assert (other.status, other.codes[""]) == (409, "key_reuse")


def test_28_a_full_queue_is_told(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.jobs.queue.submitting.MAX_QUEUED", 0)
    answer = posted(live, f"{{{DEMO}}}")
    assert (answer.status, answer.codes[""]) == (429, "queue_full")
    assert "retry-after: " in answer.head


def test_51_a_hostile_log_is_plain_text(live: Live) -> None:
    job_id = live.logged(b"\xff\xfe \x1b[31mred\r<script>\n" + b"x" * 10 * 2**20)
    try:
        answer = send(live, f"GET /jobs/{job_id}/logs?limit={8 * 2**20}")
        assert "content-type: text/plain; charset=utf-8" in answer.head
        assert "x-content-type-options: nosniff" in answer.head
        assert answer.body.startswith(b"\\xff\\xfe \\x1b[31mred\\x0d<script>\n")
        assert len(answer.body) < 2**17, "the line is cut"
    finally:
        live.queue.cancel(job_id)
        live.queue.finish(job_id, 1, CANCELLED)


def test_52_a_plot_before_the_first_epoch_is_a_picture(live: Live) -> None:
    assert send(live, f"GET /jobs/{live.job()}/plot").body.startswith(b"\x89PNG")


def test_nothing_of_all_that_stands_in_the_queue_but_what_was_good(live: Live) -> None:
    configs: list[dict[str, Any]] = [row.config for row in live.queue.page(limit=200)[0]]
    assert configs
    assert all(config["data"]["path"] == "demo" for config in configs)
