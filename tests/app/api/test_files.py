"""Checkpoint, plot and log."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from app.api.logfile import LogFile
from app.jobs.files import sidecar
from app.jobs.queue import Facts
from tests.app.api.service import AT, Service

WEIGHTS = bytes(range(256)) * 4000


def test_the_checkpoint_comes_whole_under_its_digest(api: Service) -> None:
    job_id = api.saved(WEIGHTS)
    answer = api.client.get(f"/jobs/{job_id}/checkpoint")
    digest = hashlib.sha256(WEIGHTS)
    assert answer.content == WEIGHTS
    assert answer.headers["etag"] == f'"{digest.hexdigest()}"'
    assert answer.headers["repr-digest"] == f"sha-256=:{base64.b64encode(digest.digest()).decode()}:"
    assert answer.headers["content-disposition"] == 'attachment; filename="saimp_best.pth"'
    assert answer.headers["content-length"] == str(len(WEIGHTS))
    assert answer.headers["accept-ranges"] == "bytes"


def test_head_tells_without_the_content(api: Service) -> None:
    job_id = api.saved(WEIGHTS)
    head = api.client.head(f"/jobs/{job_id}/checkpoint")
    whole = api.client.get(f"/jobs/{job_id}/checkpoint")
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=1000-", 1000, len(WEIGHTS)),
        ("bytes=-5", len(WEIGHTS) - 5, len(WEIGHTS)),
        ("bytes=-99999999999", 0, len(WEIGHTS)),
        (f"bytes=5-{10**17}", 5, len(WEIGHTS)),
    ],
)
def test_one_range_is_served(api: Service, wanted: str, start: int, end: int) -> None:
    job_id = api.saved(WEIGHTS)
    answer = api.client.get(f"/jobs/{job_id}/checkpoint", headers={"Range": wanted})
    assert answer.status_code == 206
    assert answer.content == WEIGHTS[start:end]
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{len(WEIGHTS)}"


@pytest.mark.parametrize(
    "wanted", [f"bytes={len(WEIGHTS)}-", "bytes=0-0,5-6", "bytes=" + "0-0," * 10_000, "bytes=-0"]
)
def test_several_ranges_and_ranges_beyond_the_end_are_refused(api: Service, wanted: str) -> None:
    job_id = api.saved(WEIGHTS)
    answer = api.client.get(f"/jobs/{job_id}/checkpoint", headers={"Range": wanted})
    assert (answer.status_code, answer.json()["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(WEIGHTS)}"


@pytest.mark.parametrize("wanted", ["lines=1-2", "bytes=5-2", "bytes=x-y", "bytes=-", "bytes", "bytes=٣-٤"])
def test_what_is_no_range_of_bytes_is_ignored(api: Service, wanted: str) -> None:
    job_id = api.saved(WEIGHTS)
    answer = api.client.get(f"/jobs/{job_id}/checkpoint", headers={b"Range": wanted.encode()})
    assert (answer.status_code, len(answer.content)) == (200, len(WEIGHTS))


def test_if_range_resumes_only_the_same_content(api: Service) -> None:
    job_id = api.saved(WEIGHTS)
    etag = api.client.head(f"/jobs/{job_id}/checkpoint").headers["etag"]
    home = f"/jobs/{job_id}/checkpoint"
    assert api.client.get(home, headers={"Range": "bytes=5-", "If-Range": etag}).status_code == 206
    assert api.client.get(home, headers={"Range": "bytes=5-", "If-Range": '"other"'}).status_code == 200


def test_if_none_match_spares_the_download(api: Service) -> None:
    job_id = api.saved(WEIGHTS)
    etag = api.client.head(f"/jobs/{job_id}/checkpoint").headers["etag"]
    answer = api.client.get(f"/jobs/{job_id}/checkpoint", headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


def test_there_is_no_checkpoint_before_the_first_best(api: Service) -> None:
    answer = api.client.get(f"/jobs/{api.job()}/checkpoint")
    assert (answer.status_code, answer.json()["code"]) == (404, "no_checkpoint_yet")


def test_the_row_says_which_checkpoint_is_the_best(api: Service) -> None:
    claim = api.claimed()
    api.save(claim, b"first", epoch=1)
    api.save(claim, b"second", epoch=2)
    assert api.client.get(f"/jobs/{claim.job_id}/checkpoint").content == b"second"


def test_a_changed_file_is_found_even_after_it_was_served(api: Service) -> None:
    claim = api.claimed()
    path = api.save(claim, WEIGHTS)
    home = f"/jobs/{claim.job_id}/checkpoint"
    assert api.client.get(home).status_code == 200
    path.write_bytes(b"x" + WEIGHTS[1:])
    os.utime(path, ns=(1, 1))
    answer = api.client.get(home)
    assert (answer.status_code, answer.json()["code"]) == (409, "checkpoint_corrupt")
    path.unlink()
    assert api.client.get(home).json()["code"] == "checkpoint_corrupt"


def test_the_plot_is_a_placeholder_and_then_the_workers_file(api: Service) -> None:
    job_id = api.logged(b"")
    home = f"/jobs/{job_id}/plot"
    before = api.client.get(home)
    assert (before.status_code, before.headers["content-type"]) == (200, "image/png")
    assert Image.open(io.BytesIO(before.content)).size == (640, 400)
    log_name = api.queue.get(job_id).log_name
    api.paths.plot(log_name).write_bytes(b"the plot")
    after = api.client.get(home, headers={"If-None-Match": before.headers["etag"]})
    assert (after.status_code, after.content) == (200, b"the plot")


def test_a_log_is_read_piece_by_piece(api: Service) -> None:
    text = "".join(f"line {number} höhe €\n" for number in range(100))
    home = f"/jobs/{api.logged(text.encode())}/logs"
    seen, offset = "", 0
    while offset < len(text.encode()):
        answer = api.client.get(home, params={"offset": offset, "limit": 7})
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"
        seen, offset = seen + answer.text, int(answer.headers["next-offset"])
    assert seen == text
    end = api.client.get(home, params={"offset": offset})
    assert (end.status_code, end.text) == (200, "")
    assert int(end.headers["log-size"]) == int(end.headers["next-offset"]) == len(text.encode())
    assert api.client.get(home, params={"offset": offset + 1}).status_code == 416


@pytest.mark.parametrize("ending", ["", "\n"])
@pytest.mark.parametrize("lines", [0, 1, 3, 20_000, 50_000])
def test_the_tail_is_the_last_lines(api: Service, lines: int, ending: str) -> None:
    all_lines = [f"line {number}" for number in range(30_000)]
    text = "\n".join(all_lines) + ending
    home = f"/jobs/{api.logged(text.encode())}/logs"
    answer = api.client.get(home, params={"tail": lines})
    assert answer.text == ("\n".join(all_lines[-lines:]) + ending if lines else "")
    assert answer.headers["next-offset"] == answer.headers["log-size"]


def test_a_job_that_has_not_run_has_an_empty_log(api: Service) -> None:
    answer = api.client.get(f"/jobs/{api.job()}/logs?tail=5")
    assert (answer.status_code, answer.text, answer.headers["next-offset"]) == (200, "", "0")


def test_a_log_that_is_gone_is_named(api: Service) -> None:
    job_id = api.logged(b"x")
    api.paths.log(api.queue.get(job_id).log_name).unlink()
    assert api.client.get(f"/jobs/{job_id}/logs").json()["code"] == "log_gone"


def test_what_would_drive_a_terminal_is_escaped(api: Service) -> None:
    raw = b"\x1b[31mred\x07 \r50%\xff\x9b \xe2\x80\xae<script>\ttab\n"
    answer = api.client.get(f"/jobs/{api.logged(raw)}/logs")
    assert answer.text == "\\x1b[31mred\\x07 \\x0d50%\\xff\\x9b \\u202e<script>\ttab\n"
    assert int(answer.headers["next-offset"]) == len(raw)


def test_a_stray_byte_at_the_end_does_not_stop_the_reader(api: Service) -> None:
    job_id = api.logged(b"\xe2")
    answer = api.client.get(f"/jobs/{job_id}/logs")
    assert (answer.text, answer.headers["next-offset"]) == ("\\xe2", "1")


def test_a_huge_line_is_cut_with_a_note(api: Service) -> None:
    job_id = api.logged(b"x" * 300_000 + b"\nend\n")
    answer = api.client.get(f"/jobs/{job_id}/logs")
    first, second, _ = answer.text.split("\n")
    assert len(first) < 70_000
    assert first.endswith("[cut: the line goes on for 234464 bytes]")
    assert second == "end"


def test_a_search_covers_the_whole_log(api: Service) -> None:
    text = "one\n" * 5000 + "a Needle here\n" + "two\n" * 5000 + "needle\n"
    home = f"/jobs/{api.logged(text.encode())}/logs"
    found = api.client.get(home, params={"q": "needle", "limit": 1}).json()
    assert found["data"] == [{"offset": 20_000, "text": "a Needle here"}]
    assert found["has_more"]
    rest = api.client.get(home, params={"q": "needle", "offset": found["next_offset"]}).json()
    assert ([hit["text"] for hit in rest["data"]], rest["has_more"]) == (["needle"], False)


@pytest.mark.parametrize(
    "query", ["tail=-1", "tail=1&offset=2", "offset=-1", "limit=0", "offset=x", "q=", "limit=99999999"]
)
def test_bad_log_parameters_are_refused(api: Service, query: str) -> None:
    assert api.client.get(f"/jobs/{api.job()}/logs?{query}").status_code == 422


def test_files_of_a_log_stay_with_their_job(api: Service) -> None:
    claim = api.claimed()
    name = api.paths.create_log(AT)
    api.queue.record(claim.job_id, claim.attempt, Facts(progress={"log_name": name}))
    other = api.job()
    assert api.client.get(f"/jobs/{other}/logs").text == ""


def test_what_a_run_left_is_listed_and_downloaded(api: Service) -> None:
    job_id = api.saved(b"weights")
    best = api.paths.best(job_id)
    best.parent.mkdir(parents=True, exist_ok=True)
    best.write_bytes(b"weights")
    (best.parent / "saimp_best.json").write_text('{"epoch": 1}')
    (best.parent / "saimp_best.onnx").write_bytes(b"graph")
    listed = api.client.get(f"/jobs/{job_id}/artifacts").json()["data"]
    sizes = {"saimp_best.pth": 7, "saimp_best.json": 12, "saimp_best.onnx": 5}
    assert {file["name"]: file["size"] for file in listed} == sizes
    assert api.client.get(f"/jobs/{job_id}/artifacts/saimp_best.onnx").content == b"graph"
    assert listed[0]["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert api.client.get(f"/jobs/{job_id}/artifacts/saimp_best.json").json() == {"epoch": 1}
    assert api.client.get(f"/jobs/{job_id}/artifacts/config.json").json()["data"]["path"] == "demo"
    for name in ("report.md", "saimp.db", "..%2f..%2fsaimp.db"):
        assert api.client.get(f"/jobs/{job_id}/artifacts/{name}").status_code == 404


def test_a_promoted_checkpoint_becomes_the_champion(api: Service) -> None:
    claim = api.claimed()
    path = api.save(claim, b"weights")
    sidecar(path).write_text('{"sha256": "as saved"}')
    for _ in range(2):  # repeated, it changes nothing
        answer = api.client.post(f"/jobs/{claim.job_id}/promote")
        assert (answer.status_code, answer.json()["id"]) == (200, claim.job_id)
        assert api.paths.champion().read_bytes() == b"weights"
    events = api.client.get(f"/jobs/{claim.job_id}/events").json()["data"]
    assert [event["kind"] for event in events].count("promoted") == 1


def test_what_cannot_be_promoted_says_why(api: Service) -> None:
    refused = api.client.post(f"/jobs/{api.job()}/promote")
    assert (refused.status_code, refused.json()["code"]) == (404, "no_checkpoint_yet")
    claim = api.claimed()
    path = api.save(claim, b"weights")
    refused = api.client.post(f"/jobs/{claim.job_id}/promote")
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_corrupt")
    path.write_bytes(b"bit rot")
    refused = api.client.post(f"/jobs/{claim.job_id}/promote")
    assert (refused.status_code, refused.json()["code"]) == (409, "checkpoint_corrupt")


def test_the_tail_of_a_gigabyte_is_read_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as log:
        log.truncate(2**30)
        log.seek(0, io.SEEK_END)
        log.write(b"\n" + b"line\n" * 100)
    with path.open("rb") as file:
        counting = Counting(file)
        assert LogFile(counting).tail(20, 2**20).text == "line\n" * 20  # type: ignore[arg-type]
    assert counting.bytes_read < 2**18


class Counting:
    """A file that counts what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.bytes_read = file, 0

    def seek(self, place: int, whence: int = 0) -> int:
        return self._file.seek(place, whence)

    def read(self, size: int = -1) -> bytes:
        content = self._file.read(size)
        self.bytes_read += len(content)
        return content
