"""The Python client: one method a resource, plain dicts of the contract, files verified.

client = Client("http://127.0.0.1:8000")
job = client.submit({"data": {"path": "demo"}})
client.wait(job["id"])
client.pull(job["id"], Path("saimp_best.pth"))
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import httpx2

from app.jobs.files import BEST_NAME, Paths
from app.jobs.states import FINAL

if TYPE_CHECKING:
    from app.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8000"
LONG_POLL_S = 20.0
_ANSWER_S = 90.0  # besides the long poll; a dry run may take 20 s for the data, 60 s for the model
_FIRST_S = 1.0
_ID = re.compile(r"[0-9A-HJKMNP-TV-Z]{26}")
# Another answer may come a moment later: a restart, a busy database, a proxy in front of either.
_PASSING = frozenset({502, 503, 504})

Json = dict[str, Any]
Report = Callable[[int, int], None]


class ClientError(Exception):
    """Something a caller of the service can run into; the message says what."""


class ServiceProblem(ClientError):
    """The service refused: its problem+json, as it came."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(body.get("code") or f"http_{status}")
        self.title = str(body.get("title") or "")
        self.detail = str(body.get("detail") or self.title or f"the service answered {status}")
        self.hint = body.get("hint")
        self.errors: list[Json] = [dict(item) for item in body.get("errors") or ()]
        super().__init__(f"{self.detail} [{self.code}]")


class ServerAway(ClientError):
    """Nobody answers at the URL."""

    def __init__(self, url: str, why: str) -> None:
        self.url = url
        super().__init__(f"no answer from {url}: {why}")


class DigestMismatch(ClientError):
    """The file that arrived is not the file the service announced."""


class AmbiguousId(ClientError):
    """More than one job has an id that starts like this."""


class JobUnknown(ClientError):
    """No job has an id that starts like this."""


class Client:
    """Talks to one service.

    Every request may be repeated without harm (a submit carries its own Idempotency-Key), so each is tried
    again while the server does not answer, for `patience_s` seconds; then ServerAway is raised. Before its
    first answer that is a second at most: a wrong URL is told soon.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        *,
        patience_s: float = 1.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self.patience_s = patience_s
        self._sleep = sleep
        self._has_answered = False
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        timeout = httpx2.Timeout(_ANSWER_S, connect=5.0)
        try:
            self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=timeout)
        except httpx2.InvalidURL as error:
            raise ServerAway(url, _why(error)) from error

    @classmethod
    def from_settings(cls, settings: Settings, *, patience_s: float = 1.0) -> Self:
        """Connect to SAIMP_URL with SAIMP_TOKEN, or the token file below the data root when it exists."""
        return cls(settings.url, find_token(settings), patience_s=patience_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, body: Mapping[str, Any], *, idempotency_key: str | None = None) -> Json:
        """Queue a job and return it. Raises ServiceProblem with every problem of the body at once."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", "/jobs", json=body, headers=headers)

    def plan(self, body: Mapping[str, Any]) -> Json:
        """Return what a job would do, and queue nothing."""
        return self._json("POST", "/jobs", json=body, params={"dry_run": "true"})

    def jobs(
        self,
        *,
        status: Sequence[str] = (),
        tag: str | None = None,
        q: str | None = None,
        limit: int = 50,
        after: str | None = None,
    ) -> Json:
        """Return one page of jobs, newest first: {data, has_more, next_after}."""
        params: list[tuple[str, str]] = [("status", value) for value in status]
        params += [(key, value) for key, value in (("tag", tag), ("q", q), ("after", after)) if value]
        return self._json("GET", "/jobs", params=[*params, ("limit", str(limit))])

    def job(self, job_id: str, *, wait: float | None = None) -> Json:
        """Return one job; with `wait`, when its status has changed or so many seconds have passed."""
        return self._json("GET", f"/jobs/{_safe(job_id)}", wait=wait)

    def resolve(self, reference: str) -> str:
        """Return the id meant by an id, the beginning of one, `@last`, `@best` or `@best:DATASET`.

        The best is the champion of the key whose job ended last; of a dataset, by its path, when named.
        Raises JobUnknown, or AmbiguousId naming the candidates.
        """
        if reference == "@last":
            newest = self.jobs(limit=1)["data"]
            if not newest:
                raise JobUnknown("there is no job yet")
            return str(newest[0]["id"])
        if reference == "@best" or reference.startswith("@best:"):
            return self._best(reference.removeprefix("@best").removeprefix(":"))
        prefix = reference.strip().upper()
        if _ID.fullmatch(prefix):
            return prefix
        found = self.jobs(q=prefix, limit=200)["data"] if prefix.isalnum() else []
        ids = [str(job["id"]) for job in found if job["id"].startswith(prefix)]
        if not ids:
            raise JobUnknown(f"no job has an id that starts with {reference[:64]!r}")
        if len(ids) > 1:
            shown = ", ".join(sorted(ids)[:5]) + (", ..." if len(ids) > 5 else "")
            raise AmbiguousId(f"{len(ids)} jobs have an id that starts with {reference[:64]!r}: {shown}")
        return ids[0]

    def _best(self, dataset: str) -> str:
        found = self.champions(path=dataset or None, limit=1)["data"]
        if not found:
            of = f" of the dataset {dataset[:64]!r}" if dataset else ""
            raise JobUnknown(f"no job{of} has ended with a best checkpoint yet")
        return str(found[0]["job"]["id"])

    def champions(self, *, path: str | None = None, limit: int = 50, after: str | None = None) -> Json:
        """Return the best job of each comparison key, the newest key first: {data, has_more, next_after}.

        path: only keys of jobs with this `data.path`.
        """
        params = {"limit": str(limit)}
        params |= {key: value for key, value in (("path", path), ("after", after)) if value is not None}
        return self._json("GET", "/champions", params=params)

    def metrics(
        self,
        job_id: str,
        *,
        after: str | None = None,
        scope: Sequence[str] = ("epoch", "batch", "system"),
        wait: float | None = None,
        max_points: int | None = None,
    ) -> Json:
        """Return what was measured behind the cursor `after`; with `wait`, as soon as there is something."""
        params = {"scope": ",".join(scope)}
        if after is not None:
            params["after"] = after
        if max_points is not None:
            params["max_points"] = str(max_points)
        return self._json("GET", f"/jobs/{_safe(job_id)}/metrics", params=params, wait=wait)

    def events(self, job_id: str, *, after: str | None = None) -> Json:
        """Return the job's history behind the cursor `after`."""
        params = {} if after is None else {"after": after}
        return self._json("GET", f"/jobs/{_safe(job_id)}/events", params=params)

    def log(self, job_id: str, *, offset: int = 0, tail: int | None = None) -> tuple[str, int]:
        """Return a stretch of the log, from a byte offset or its last `tail` lines, and the offset behind it.

        Empty before the job has run.
        """
        params = {"tail": tail} if tail is not None else {"offset": offset}
        answer = self._send("GET", f"/jobs/{_safe(job_id)}/logs", params=params)
        return answer.text, int(answer.headers["Next-Offset"])

    def logs(
        self, job_id: str, *, offset: int = 0, follow: bool = False, poll_s: float = 0.5
    ) -> Iterator[str]:
        """Yield the log's text from a byte offset; with `follow`, until the job has ended."""
        while True:
            # Ask for the status first: what a job wrote before it ended is then in the pages behind.
            is_last = not follow or self.job(job_id)["status"] in FINAL
            while True:
                text, offset = self.log(job_id, offset=offset)
                if not text:
                    break
                yield text
            if is_last:
                return
            self._sleep(poll_s)

    def cancel(self, job_id: str) -> Json:
        """Ask for the job's end and return it. Repeated: nothing more happens."""
        return self._json("POST", f"/jobs/{_safe(job_id)}/cancel")

    def pause(self, job_id: str) -> Json:
        """Ask for a pause and return the job. Repeated: nothing more happens."""
        return self._json("POST", f"/jobs/{_safe(job_id)}/pause")

    def resume(self, job_id: str) -> Json:
        """Let a paused job wait for its turn again and return it."""
        return self._json("POST", f"/jobs/{_safe(job_id)}/resume")

    def promote(self, job_id: str) -> Json:
        """Make the job's best the champion until its promotion ends, and return the job."""
        return self._json("POST", f"/jobs/{_safe(job_id)}/promote")

    def end_promotion(self, job_id: str) -> Json:
        """Let the best of the comparable jobs be the champion again, and return the job."""
        return self._json("DELETE", f"/jobs/{_safe(job_id)}/promote")

    def retry(self, job_id: str, *, from_start: bool = False, idempotency_key: str | None = None) -> Json:
        """Queue a job that has ended once more and return the new one; it goes on where it was saved last.

        One that has succeeded only from_start: nothing is left of it to do.
        """
        return self._json(
            "POST",
            f"/jobs/{_safe(job_id)}/retry",
            params={"from": "start" if from_start else "checkpoint"},
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )

    def clone(
        self, job_id: str, patch: Mapping[str, Any] | None = None, *, idempotency_key: str | None = None
    ) -> Json:
        """Queue a new job with the config of this one, changed by a JSON merge patch, and return it."""
        headers = {"Idempotency-Key": idempotency_key or uuid.uuid4().hex}
        return self._json("POST", f"/jobs/{_safe(job_id)}/clone", json=patch or {}, headers=headers)

    def edit(self, job_id: str, patch: Mapping[str, Any]) -> Json:
        """Change name, tags, metadata, priority or not_before by a JSON merge patch; return the job."""
        return self._json("PATCH", f"/jobs/{_safe(job_id)}", json=patch)

    def move(self, job_id: str, *, before: str | None = None, after: str | None = None) -> Json:
        """Put a waiting job right before or right after another one, whose priority it takes."""
        sides = {"before": before, "after": after}
        body = {side: other for side, other in sides.items() if other is not None}
        return self._json("POST", f"/jobs/{_safe(job_id)}/move", json=body)

    def delete(self, job_id: str, *, drop_champion: bool = False) -> None:
        """Delete a job that has ended, with its files; the champion only with drop_champion."""
        params = {"champion": "drop"} if drop_champion else None
        self._send("DELETE", f"/jobs/{_safe(job_id)}", params=params)

    def queue(self, *, limit: int | None = None, after: str | None = None) -> Json:
        """Return who waits, in the order of their turn: {data, has_more, next_after, drained_at}."""
        asked = {"limit": limit, "after": after}
        params = {name: value for name, value in asked.items() if value is not None}
        return self._json("GET", "/queue", params=params)

    def drain(self, *, finish_running: bool = False) -> Json:
        """Let no job start any more; what runs is put back, or may run to its end. Returns the queue."""
        return self._json(
            "POST", "/queue/drain", params={"running": "finish" if finish_running else "preempt"}
        )

    def open_queue(self) -> Json:
        """Let jobs start again. Returns the queue."""
        return self._json("POST", "/queue/open")

    def plot(self, job_id: str) -> bytes:
        """Return the curves as a PNG."""
        return self._send("GET", f"/jobs/{_safe(job_id)}/plot").content

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Json:
        """Return the job once it has ended. Raises TimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        job = self.job(job_id)
        while job["status"] not in FINAL:
            left = LONG_POLL_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"job {job_id} is still {job['status']} after {timeout_s:g} s")
            began = time.monotonic()
            job = self.job(job_id, wait=min(LONG_POLL_S, max(0.1, left)))
            if job["status"] not in FINAL and time.monotonic() - began < 0.2:
                self._sleep(0.2)
        return job

    def health(self) -> Json:
        """Return the service's own word that it lives."""
        return self._json("GET", "/healthz")

    def pull(self, job_id: str, target: Path, *, report: Report | None = None) -> Path:
        """Download the best checkpoint to a file, or into a folder as `saimp_best.pth`, and return its path.

        Resumes a part left by an earlier call, and verifies the sha256 before the file takes its name: what
        was there stays until then. report: gets (bytes so far, bytes in all).
        """
        path = target / BEST_NAME if target.is_dir() else target
        url = f"/jobs/{_safe(job_id)}/checkpoint"
        deadline = self._deadline()
        mismatches = 0
        sha256, size = self._announced(url)
        if path.is_file() and _sha256(path) == sha256:
            self._pull_sidecar(job_id, path, sha256)
            return path
        while True:
            part = path.with_name(f".{path.name}.{sha256[:16]}.part")
            before = part.stat().st_size if part.exists() else 0
            try:
                sha256, part = self._download(url, sha256, size, part, report)
            except httpx2.TransportError as error:
                after = part.stat().st_size if part.exists() else 0
                if after > before:
                    deadline = self._deadline()
                if time.monotonic() > deadline:
                    raise ServerAway(self.url, _why(error)) from error
                self._sleep(0.2)
                continue
            if _sha256(part) == sha256:
                _keep(part, path)
                self._pull_sidecar(job_id, path, sha256)
                return path
            part.unlink()
            mismatches += 1
            if mismatches == 2:
                raise DigestMismatch(f"the checkpoint of job {job_id} arrived damaged: not {sha256}")
            sha256, size = self._announced(url)

    def _pull_sidecar(self, job_id: str, path: Path, sha256: str) -> None:
        """Put the description of a checkpoint beside it, unless the service has a newer best by now."""
        try:
            about = self._json("GET", f"/jobs/{_safe(job_id)}/artifacts/saimp_best.json")
        except (ServiceProblem, ValueError):
            return  # a service that has none
        if about.get("sha256") == sha256:
            part = path.with_name(f".{path.name}.json.part")
            part.write_text(json.dumps(about, indent=1), encoding="utf-8")
            _keep(part, path.with_suffix(".json"))

    def _announced(self, url: str) -> tuple[str, int]:
        try:
            answer = self._send("HEAD", url)
        except ServiceProblem:
            answer = self._send("GET", url)  # an answer to HEAD has no body to say what is wrong
        return _digest(answer.headers), int(answer.headers.get("Content-Length", 0))

    def _download(
        self, url: str, sha256: str, size: int, part: Path, report: Report | None
    ) -> tuple[str, Path]:
        """Fetch what `part` lacks; a newer best starts a part of its own. Returns (sha256, part)."""
        have = part.stat().st_size if part.exists() else 0
        if size and have >= size:
            return sha256, part
        headers = {"Accept-Encoding": "identity"}
        if have:
            headers |= {"Range": f"bytes={have}-", "If-Range": f'"{sha256}"'}
        with self._http.stream("GET", url, headers=headers) as answer:
            if answer.status_code in _PASSING:
                raise httpx2.RemoteProtocolError(f"it answers {answer.status_code}")
            _raise_for_problem(answer)
            now = _digest(answer.headers)
            if now != sha256:
                part.unlink(missing_ok=True)
                sha256, part = now, part.with_name(part.name.replace(sha256[:16], now[:16]))
            is_rest = answer.status_code == 206
            done = have if is_rest else 0
            size = done + int(answer.headers.get("Content-Length", 0))
            with open(part, "ab" if is_rest else "wb") as file:
                for chunk in answer.iter_raw():
                    file.write(chunk)
                    done += len(chunk)
                    if report is not None:
                        report(done, size)
        return sha256, part

    def _json(self, method: str, url: str, **request: Any) -> Json:
        body: Json = self._send(method, url, **request).json()
        return body

    def _send(
        self, method: str, url: str, *, wait: float | None = None, params: Any = None, **request: Any
    ) -> httpx2.Response:
        if wait is not None:
            params = {**(params or {}), "wait": f"{wait:g}"}
            request["timeout"] = httpx2.Timeout(_ANSWER_S + wait, connect=5.0)
        deadline = self._deadline()
        pause_s = 0.1
        while True:
            try:
                answer = self._http.request(method, url, params=params, **request)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
                raise ServerAway(self.url, _why(error)) from error
            except httpx2.TransportError as error:
                if time.monotonic() + pause_s > deadline:
                    raise ServerAway(self.url, _why(error)) from error
            else:
                if answer.status_code not in _PASSING or time.monotonic() + pause_s > deadline:
                    self._has_answered = True
                    _raise_for_problem(answer)
                    return answer
            self._sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)

    def _deadline(self) -> float:
        patience_s = self.patience_s if self._has_answered else min(self.patience_s, _FIRST_S)
        return time.monotonic() + patience_s


def find_token(settings: Settings) -> str | None:
    """Return SAIMP_TOKEN, else what the token file below the data root holds; null without either."""
    if settings.token:
        return settings.token
    path = Paths(settings.data_root, settings.logs_root).token()
    try:
        return path.read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _raise_for_problem(answer: httpx2.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        body = answer.json()
    except ValueError:
        body = {}
    raise ServiceProblem(answer.status_code, body if isinstance(body, dict) else {})


def _safe(job_id: str) -> str:
    if not _ID.fullmatch(job_id):
        raise JobUnknown(f"{job_id[:64]!r} is no job id")
    return job_id


def _digest(headers: httpx2.Headers) -> str:
    """Read the announced sha256, from Repr-Digest (RFC 9530) or else the strong ETag."""
    found = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", headers.get("Repr-Digest", ""))
    if found:
        try:
            return base64.b64decode(found[1], validate=True).hex()
        except binascii.Error:
            pass
    etag = re.fullmatch(r'"(?:sha256:)?([0-9a-f]{64})"', headers.get("ETag", ""))
    if etag is None:
        raise DigestMismatch("the service announced no sha256 for the checkpoint")
    return etag[1]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _keep(part: Path, path: Path) -> None:
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__
