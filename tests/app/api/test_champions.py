"""The champions over HTTP: listed, downloaded, promoted, dropped."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from app.api import schemas
from app.jobs.files import sidecar
from app.jobs.queue import Facts, Reason
from tests.app.api.service import Service

A, B = "a" * 64, "b" * 64


def ended(api: Service, epoch: int, key: str = A, path: str = "demo") -> str:
    """Let a job end with the loss 1 / epoch; its weights are its id."""
    claim = api.claimed(data={"path": path})
    weights = api.save(claim, claim.job_id.encode(), epoch)
    sidecar(weights).write_text(json.dumps({"job_id": claim.job_id}))
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"comparison_key": key}))
    api.queue.finish(claim.job_id, claim.attempt, Reason("completed"))
    return claim.job_id


def champions(api: Service, query: str = "") -> dict[str, Any]:
    answer = api.client.get(f"/champions{query}")
    assert answer.status_code == 200, answer.text
    schemas.ChampionPage.model_validate_json(answer.content)
    page: dict[str, Any] = answer.json()
    return page


def is_champion(api: Service, job_id: str) -> bool:
    """Ask every view of a job, which must agree."""
    (listed,) = [one for one in api.client.get("/jobs").json()["data"] if one["id"] == job_id]
    found = api.client.get(f"/jobs/{job_id}").json()["champion"]
    assert listed["champion"] == found
    return bool(found)


def test_each_key_has_its_champion_the_newest_key_first(api: Service) -> None:
    assert champions(api) == {"data": [], "has_more": False, "next_after": None}
    good, other, worse = ended(api, 3, A), ended(api, 9, B), ended(api, 2, A)
    page = champions(api)
    assert [
        (one["comparison_key"], one["job"]["id"], one["promoted"], one["behind_file"]) for one in page["data"]
    ] == [(A, good, False, True), (B, other, False, False)]
    assert "config" not in page["data"][0]["job"]
    assert [is_champion(api, job_id) for job_id in (good, other, worse)] == [True, True, False]
    first = champions(api, "?limit=1")
    assert first["has_more"]
    second = champions(api, f"?limit=1&after={first['next_after']}")
    assert [one["job"]["id"] for one in first["data"] + second["data"]] == [good, other]
    assert not second["has_more"]


def test_the_keys_of_a_dataset_are_found_by_its_path(api: Service) -> None:
    here, there = ended(api, 1, A, "demo"), ended(api, 1, B, "other/one")
    assert [one["job"]["id"] for one in champions(api, "?path=demo")["data"]] == [here]
    assert [one["job"]["id"] for one in champions(api, "?path=other/one")["data"]] == [there]
    assert champions(api, "?path=none")["data"] == []


def test_what_cannot_be_asked_is_refused(api: Service) -> None:
    for query in (
        "limit=0",
        "limit=201",
        "after=x",
        "after=-1",
        "path=",
        "path=%00",
        "key=5",
        f"after={'9' * 19}",
    ):
        assert api.client.get(f"/champions?{query}").status_code == 422, query
    for key in (A, "A" * 64, "x", "%00", "a" * 65):
        answer = api.client.get(f"/champions/{key}/checkpoint")
        assert (answer.status_code, answer.json()["code"]) == (404, "champion_not_found"), key


def test_a_champion_is_downloaded_like_any_checkpoint(api: Service) -> None:
    best = ended(api, 2)
    ended(api, 1)
    url = f"/champions/{A}/checkpoint"
    whole = api.client.get(url)
    etag = f'"{hashlib.sha256(best.encode()).hexdigest()}"'
    assert (whole.content, whole.headers["etag"]) == (best.encode(), etag)
    part = api.client.get(url, headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content) == (206, best.encode()[3:6])
    assert api.client.get(url, headers={"If-None-Match": etag}).status_code == 304
    head = api.client.head(url)
    assert (head.status_code, head.headers["content-length"], head.content) == (200, "26", b"")


def test_a_promotion_and_its_end(api: Service) -> None:
    best, chosen = ended(api, 2), ended(api, 1)
    for _ in range(2):
        answer = api.client.post(f"/jobs/{chosen}/promote")
        assert (answer.status_code, answer.json()["champion"]) == (200, True)
        assert api.paths.champion().read_text() == chosen
    (only,) = champions(api)["data"]
    assert (only["job"]["id"], only["promoted"], only["behind_file"]) == (chosen, True, True)
    assert not is_champion(api, best)
    for _ in range(2):
        answer = api.client.delete(f"/jobs/{chosen}/promote")
        assert (answer.status_code, answer.json()["champion"]) == (200, False)
        assert api.paths.champion().read_text() == best
    assert api.client.delete("/jobs/01ARZ3NDEKTSV4RRFFQ69G5FAV/promote").status_code == 404


def test_the_champion_is_deleted_only_when_told(api: Service) -> None:
    second, best = ended(api, 1), ended(api, 2)
    refused = api.client.delete(f"/jobs/{best}")
    assert (refused.status_code, refused.json()["code"]) == (409, "is_champion")
    assert api.client.delete(f"/jobs/{best}?champion=keep").status_code == 422
    assert api.client.delete(f"/jobs/{best}?champion=drop").status_code == 204
    assert api.paths.champion().read_text() == second
    assert is_champion(api, second)
    assert api.client.delete(f"/jobs/{second}?champion=drop").status_code == 204
    assert not api.paths.champion().exists()
    assert api.client.delete(f"/jobs/{second}?champion=drop").status_code == 404


def test_another_job_is_deleted_without_a_word(api: Service) -> None:
    best, worse = ended(api, 2), ended(api, 1)
    assert api.client.delete(f"/jobs/{worse}?champion=drop").status_code == 204
    assert api.paths.champion().read_text() == best


def test_a_cancelled_pause_is_an_ending_like_any_other(api: Service) -> None:
    claim = api.claimed()
    sidecar(api.save(claim, b"weights")).write_text("{}")
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"comparison_key": A}))
    api.queue.suspend(claim.job_id, claim.attempt)
    assert api.client.post(f"/jobs/{claim.job_id}/cancel").json()["champion"]
    assert api.paths.champion().read_bytes() == b"weights"
