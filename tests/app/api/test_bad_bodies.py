"""Bodies that cannot be jobs: each gets its named answer, none reaches the queue."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from app.api.body import MAX_BYTES, parse
from tests.app.api.service import Service, service
from tests.app.live import live_service

JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(Path(tmp_path_factory.mktemp("service"))) as running:
        yield running


def refused(api: Service, body: bytes, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """Post a body, and check what is true of every refusal."""
    answer = api.client.post("/jobs", content=body, headers=JSON if headers is None else headers)
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == answer.status_code
    assert {"type", "title", "detail", "code", "errors"} <= set(problem)
    assert str(api.services.settings.data_root) not in answer.text
    assert api.queue.page() == ([], False)
    return problem


def found(api: Service, body: object) -> dict[str, str]:
    """Post a body and map each pointer to its code."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    problem = refused(api, raw)
    assert problem["status"] == 422, problem
    return {error["pointer"]: error["code"] for error in problem["errors"]}


def demo(**sections: Any) -> dict[str, Any]:
    return {"data": {"path": "demo"}, **sections}


@pytest.mark.parametrize("number", [b"NaN", b"Infinity", b"-Infinity", b"1e400"])
def test_numbers_that_are_not_finite_are_named(api: Service, number: bytes) -> None:
    body = b'{"data": {"path": "demo"}, "optimizer": {"lr": ' + number + b"}}"
    assert found(api, body) == {"/optimizer/lr": "not_finite"}


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (rb'{"data": {"path": "demo"}, "name": "a\ud800b"}', "/name"),
        (rb'{"data": {"path": "demo"}, "metadata": {"\udfff": "x"}}', "/metadata"),
    ],
    ids=["value", "key"],
)
def test_half_a_surrogate_pair_is_no_text(api: Service, body: bytes, pointer: str) -> None:
    assert found(api, body) == {pointer: "invalid_unicode"}


@pytest.mark.parametrize("text", ["a\0b", "a\nb", "\x1b[31m", "\x7f"])
def test_control_characters_are_refused(api: Service, text: str) -> None:
    assert found(api, demo(name=text)) == {"/name": "control_character"}


def test_a_text_that_turns_around_is_refused(api: Service) -> None:
    assert found(api, demo(name="\N{RIGHT-TO-LEFT OVERRIDE}abc")) == {"/name": "invalid_value"}


@pytest.mark.parametrize("number", ["9" * 5000, str(2**63), str(-(2**63) - 1)], ids=["long", "2^63", "low"])
def test_integers_beyond_64_bits_are_out_of_range(api: Service, number: str) -> None:
    body = f'{{"data": {{"path": "demo"}}, "training": {{"seed": {number}}}}}'.encode()
    assert found(api, body) == {"/training/seed": "out_of_range"}


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deep_json_is_refused(api: Service, opening: bytes) -> None:
    problem = refused(api, opening * 100_000)
    assert (problem["status"], problem["code"]) == (400, "too_deep")


def test_brackets_in_texts_are_not_depth() -> None:
    assert parse(json.dumps({"a": "[" * 1000 + '"'}).encode()) == ({"a": "[" * 1000 + '"'}, [])


@pytest.mark.parametrize("text", [b'"' + b'\\"' * 500_000, b'"a' * 340_000, b'{"a":"' + b"\\" * 900_000])
def test_hostile_quotes_take_no_time(text: bytes) -> None:
    began = time.monotonic()
    with pytest.raises(Exception, match="JSON"):
        parse(text)
    assert time.monotonic() - began < 1


def test_a_body_with_a_large_length_is_refused_unread(api: Service) -> None:
    problem = refused(api, b"x" * (MAX_BYTES + 1))
    assert (problem["status"], problem["code"]) == (413, "body_too_large")


def test_a_body_without_length_is_refused_while_it_streams(api: Service) -> None:
    sent = 0

    def chunks() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(800):
            sent += 1
            yield b" " * 65536

    answer = api.client.post("/jobs", content=chunks(), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "body_too_large")


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("training", "batchsize", "Did you mean 'batch_size'?"),
        ("training", "batchSize", "Did you mean 'batch_size'?"),
        ("optimizer", "wieght_decay", "Did you mean 'weight_decay'?"),
        ("data", "_target_", "Known here"),
        ("model", "target", "Known here"),
    ],
)
def test_unknown_fields_say_what_was_meant(api: Service, section: str, key: str, hint: str) -> None:
    body = demo()
    body[section] = {**body.get(section, {}), key: 1}
    if section == "model":
        body["model"]["name"] = "vivit"
    (error,) = refused(api, json.dumps(body).encode())["errors"]
    assert (error["pointer"], error["code"]) == (f"/{section}/{key}", "unknown_field")
    assert error["hint"].startswith(hint)


def test_a_key_that_stands_twice_is_refused(api: Service) -> None:
    problem = refused(api, b'{"data": {"path": "demo", "path": "other"}}')
    assert (problem["status"], problem["code"]) == (400, "duplicate_key")
    assert problem["errors"][0]["pointer"] == "/data/path"


@pytest.mark.parametrize("value", ["0.5", True, None, [1], {}])
def test_types_are_strict(api: Service, value: object) -> None:
    assert found(api, demo(optimizer={"lr": value})) == {"/optimizer/lr": "wrong_type"}


@pytest.mark.parametrize("value", [True, "3", 3.0, 3.5])
def test_integers_are_strict(api: Service, value: object) -> None:
    assert found(api, demo(training={"epochs": value})) == {"/training/epochs": "wrong_type"}


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"", JSON, 422, "empty_body"),
        (b"{}", {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/x-www-form-urlencoded"}, 415, "unsupported_media_type"),
        (b"{}", {"content-type": "application/json; charset=utf-16"}, 415, "unsupported_media_type"),
        (b"{}", JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b'{"name": "\xff"}', JSON, 400, "invalid_json"),
        (b"{'data': 1}", JSON, 400, "invalid_json"),
        (b'{"data": {"path": "demo"}} x', JSON, 400, "invalid_json"),
        (b"{}", JSON, 422, "invalid_request"),
        (b"[]", JSON, 422, "invalid_request"),
        (b"null", JSON, 422, "invalid_request"),
    ],
)
def test_what_is_no_json_object_is_refused(
    api: Service, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    problem = refused(api, body, headers)
    assert (problem["status"], problem["code"]) == (status, code)


def test_the_wrong_content_type_names_the_way_out(api: Service) -> None:
    assert "curl --json" in refused(api, b"{}", {"content-type": "text/plain"})["hint"]


@pytest.mark.parametrize(
    ("section", "pointer", "says"),
    [
        ({"optimizer": {"lr": 0}}, "/optimizer/lr", "must be a number above 0, at most 1"),
        ({"optimizer": {"lr": 2}}, "/optimizer/lr", "must be a number above 0, at most 1"),
        ({"optimizer": {"name": "sgd", "lr": 200}}, "/optimizer/lr", "must be a number above 0, at most 100"),
        ({"optimizer": {"weight_decay": -1}}, "/optimizer/weight_decay", "must be a number from 0 to 1"),
        ({"training": {"epochs": 0}}, "/training/epochs", "must be an integer from 1 to 100000"),
        ({"training": {"epochs": 10**9}}, "/training/epochs", "must be an integer from 1 to 100000"),
        (
            {"training": {"batch_size": 0}},
            "/training/batch_size",
            'must be an integer from 1 to 1000000 or "auto"',
        ),
        (
            {"training": {"accumulation_steps": 0}},
            "/training/accumulation_steps",
            "must be an integer from 1 to",
        ),
        (
            {"early_stopping": {"patience": -1}},
            "/early_stopping/patience",
            "must be an integer from 1 to 100000",
        ),
        (
            {"loss": {"class_weights": [-1, 1]}},
            "/loss/class_weights/0",
            "must be a number from 0 to 1000000000",
        ),
        ({"loss": {"class_weights": [0, 0, 0, 0]}}, "/loss/class_weights", "at least one class weight"),
        (
            {"data": {"path": "demo", "split": {"train": 1.5}}},
            "/data/split/train",
            "must be a number from 0 to 1",
        ),
        ({"data": {"path": "demo", "split": {"train": 0.9}}}, "/data/split", "must sum to 1"),
        (
            {"data": {"path": "demo", "split": {"val_from": "soon"}}},
            "/data/split/val_from",
            "must be a time such",
        ),
        ({"model": {"name": "gpt"}}, "/model/name", 'must be a known name: "vivit" or "mlp"'),
        ({"model": {"name": "vivit", "heads": 3}}, "/model", "must be a multiple of heads"),
        ({"device": "gpu"}, "/device", 'must be "auto" or "cpu" or "cuda" or "cuda:0"'),
        ({"init_from": "http://x/y"}, "/init_from", "must be a job's id"),
        ({"name": "a" * 121}, "/name", "must be a text of 1 to 120 characters"),
        ({"tags": ["a"] * 17}, "/tags", "must be a list of at most 16 items"),
        ({"priority": 2000}, "/priority", "must be an integer from -1000 to 1000"),
        ({"not_before": "2026-01-01T00:00:00"}, "/not_before", "must say its time zone"),
        ({"metadata": {"k" * 65: "v"}}, "/metadata", "as a key must be a text of 1 to 64 characters"),
        ({"optimizer": {"betas": [0.9]}}, "/optimizer/betas", "must be a list of 2 items"),
        (
            {"data": {"path": "demo", "classes": ["a", "b", "a", "d"]}},
            "/data/classes",
            "two classes are called 'a'",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("/") else "",
)
def test_each_bound_is_told(api: Service, section: dict[str, Any], pointer: str, says: str) -> None:
    (error,) = refused(api, json.dumps(demo() | section).encode())["errors"]
    assert error["pointer"] == pointer
    assert says in error["message"]


def test_a_section_without_a_name_is_judged_as_the_default(api: Service) -> None:
    (error,) = refused(api, json.dumps(demo(optimizer={"lr": 2})).encode())["errors"]
    assert error["message"] == "must be a number above 0, at most 1"


def test_every_problem_comes_at_once_config_dependencies_and_data(api: Service) -> None:
    body = demo(
        training={"epochs": 0, "batch_size": "many"},
        depends_on=["01ARZ3NDEKTSV4RRFFQ69G5FAV"],
        loss={"class_weights": [1.0, 2.0]},
        nam="x",
    )
    assert found(api, body) == {
        "/training/epochs": "out_of_range",
        "/training/batch_size": "not_allowed",
        "/depends_on/0": "job_not_found",
        "/loss/class_weights": "class_weights_length",
        "/nam": "unknown_field",
    }


@pytest.mark.parametrize(
    "path",
    ["../../etc", "/etc", "file:///etc/passwd", "..\\..\\etc", "%2e%2e/etc", "jobs", "nothing-here"],
)
def test_data_outside_the_root_is_refused(api: Service, path: str) -> None:
    assert list(found(api, {"data": {"path": path}})) == ["/data/path"]


@pytest.mark.parametrize("where", ["key", "value", "deep"])
def test_at_most_64_characters_of_input_come_back(api: Service, where: str) -> None:
    long = "q" * 5000
    body = {
        "key": demo(**{long: 1}),
        "value": demo(device=long),
        "deep": demo(x={long: {long: [{long: "\0"}]}}),
    }
    text = json.dumps(refused(api, json.dumps(body[where]).encode()))
    assert "q" * 65 not in text


MANY = {f"k{number}": 1 for number in range(40_000)}
BROAD: dict[str, dict[str, Any]] = {
    "keys": demo(**MANY),
    "keys of a section": {"data": {"path": "demo", **MANY}},
    "keys of a split": {"data": {"path": "demo", "split": MANY}},
    "values of metadata": demo(metadata=MANY),
    "keys of params": demo(model={"name": "custom", "target": "a:B", "params": {f"-{k}": 1 for k in MANY}}),
    "values of a matrix": demo(loss={"name": "ordinal", "cost": [["x"] * 256] * 256}),
    "values of a list": demo(data={"path": "demo", "features": [1] * 4000}),
    "texts": demo(x=["\0"] * 40_000),
    "keys twice over": demo(**{f"\x7f{number}": 1 for number in range(40_000)}),
}


@pytest.mark.parametrize("body", BROAD.values(), ids=BROAD.keys())
def test_of_many_problems_the_first_are_listed_and_looked_for(
    api: Service, body: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    meant: list[str] = []

    def did_you_mean(name: str, known: list[str]) -> str:
        meant.append(name)
        return ""

    monkeypatch.setattr("app.api.explain.did_you_mean", did_you_mean)
    problem = refused(api, json.dumps(body).encode())
    assert len(problem["errors"]) == 100
    assert problem["detail"].startswith("More than 100 problems; the first 100 are listed.")
    assert len(meant) < 1000


def test_of_many_keys_that_stand_twice_the_first_are_listed(api: Service) -> None:
    problem = refused(api, b"{" + b",".join(b'"k%d":1,"k%d":1' % (n, n) for n in range(20_000)) + b"}")
    assert (problem["code"], len(problem["errors"])) == ("duplicate_key", 100)


@pytest.mark.parametrize("where", ["tags", "depends_on", "model", "x", "data"])
def test_a_huge_list_is_one_problem(api: Service, where: str) -> None:
    assert len(found(api, demo(**{where: [0] * 250_000}))) == 1


def test_many_parameters_are_not_all_explained(api: Service) -> None:
    answer = api.client.get("/jobs?" + "&".join(f"k{number}=1" for number in range(2000)))
    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 100


def test_others_are_served_while_a_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_reading, may_go_on = threading.Event(), threading.Event()

    def held(body: bytes) -> Any:
        is_reading.set()
        assert may_go_on.wait(30)
        return parse(body)

    monkeypatch.setattr("app.api.body.parse", held)
    with live_service(tmp_path) as live, ThreadPoolExecutor() as pool:
        submitted = pool.submit(httpx2.post, f"{live.url}/jobs", json=demo(), timeout=30)
        assert is_reading.wait(30)
        assert httpx2.get(f"{live.url}/healthz", timeout=30).status_code == 200
        assert not submitted.done()
        may_go_on.set()
        assert submitted.result().status_code == 201


NO_SPLIT = [0.8, [], "x", True, None, 0, {"train": 0.8, "val_from": "2026-01-01T00:00:00Z"}]


@pytest.mark.parametrize("split", NO_SPLIT)
@pytest.mark.parametrize("path", ["/jobs", "/jobs?dry_run=true", "/datasets/audit"])
def test_what_is_no_split_is_refused(api: Service, path: str, split: object) -> None:
    answer = api.client.post(path, json={"data": {"path": "demo", "split": split}})
    assert answer.status_code == 422
    assert all(error["pointer"].startswith("/data/split") for error in answer.json()["errors"])


@pytest.mark.parametrize(
    ("time", "code"),
    [
        ("1893456000", "invalid_time"),
        ("1893456000.5", "invalid_time"),
        ("2026-01-01", "invalid_time"),
        ("2026-01-01T00:00Z", "invalid_time"),
        ("20260101T000000Z", "invalid_time"),
        ("2026-02-30T00:00:00Z", "invalid_time"),
        ("2026-01-01T25:00:00Z", "invalid_time"),
        ("2026-01-01T00:00:00+99:00", "invalid_time"),
        ("2026-01-01T00:00:00.1234567Z", "invalid_time"),
        ("٢٠٢٦-01-01T00:00:00Z", "invalid_time"),
        ("2026-01-01T00:00:00", "invalid_time"),
        ("", "invalid_time"),
        (1893456000, "wrong_type"),
        (1.5, "wrong_type"),
        (True, "wrong_type"),
        ([], "wrong_type"),
        ("0001-01-01T00:00:00+14:00", "out_of_range"),
        ("9999-12-31T23:59:59-14:00", "out_of_range"),
        ("0000-01-01T00:00:00Z", "invalid_time"),
    ],
)
def test_only_what_rfc_3339_calls_a_time_is_one(api: Service, time: object, code: str) -> None:
    assert found(api, demo(not_before=time)) == {"/not_before": code}
    split = {"val_from": time}
    assert found(api, {"data": {"path": "demo", "split": split}}) == {"/data/split/val_from": code}
    split = {"val_from": "2026-01-01T00:00:00Z", "test_from": time}
    assert found(api, {"data": {"path": "demo", "split": split}}) == {"/data/split/test_from": code}


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "1969-12-31T00:00:00Z", "9999-12-31T23:59:59Z"])
def test_cuts_far_away_leave_a_part_empty(api: Service, time: str) -> None:
    body = {"data": {"path": "demo", "split": {"val_from": time}}}
    assert found(api, body) == {"/data/split": "empty_split"}
    for path in ("/jobs?dry_run=true", "/datasets/audit"):
        assert api.client.post(path, json=body).status_code == 422


def test_the_sentence_alone_names_the_problem(api: Service) -> None:
    problem = refused(api, json.dumps(demo(training={"epochs": 0})).encode())
    assert problem["detail"] == "/training/epochs: must be an integer from 1 to 100000"
