"""The life that a version leads before it is replaced: jobs in every status, then a power cut.

The version is driven as a user does it, over HTTP, so that one script fits all of them.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.processes import environment, eventually

ROWS = 220
Json = dict[str, Any]

# Of each there is as much as makes it a job of its own; all of them give the same bits wherever they stop.
_TINY: Json = {
    "data": {"path": "demo", "window": 8, "horizon_s": 0.0, "split": {"train": 0.6, "val": 0.2, "test": 0.2}},
    "model": {"name": "mlp", "d_model": 8, "hidden": 8},
    "training": {"epochs": 3, "threads": 1, "deterministic": True, "log_every": 7},
    "early_stopping": {"patience": 9},
    "device": "cpu",
    "checkpoint": {"every_s": 0.02, "keep_last": 1},
}


def _body(name: str, **sections: Json) -> Json:
    body: Json = {"name": name, **_TINY}
    for section, given in sections.items():
        # A model of another name has nothing of the tiny one's.
        body[section] = given if "name" in given else {**_TINY.get(section, {}), **given}
    return body


# Stopped in the middle in some way, and to be gone on with.
STOPPED: dict[str, Json] = {
    body["name"]: body
    for body in (
        _body(
            "average",
            model={"name": "transformer", "d_model": 4, "heads": 2, "layers": 1},
            training={"ema_decay": 0.9},
            schedule={"name": "cosine", "warmup_steps": 3},
        ),
        _body(
            "recomputing",
            model={"name": "transformer", "d_model": 4, "heads": 2, "layers": 1},
            training={"batch_size": "auto", "activation_checkpointing": True, "clip_grad_norm": 1.0},
            schedule={"name": "plateau"},
        ),
        _body(
            "momentum",
            model={"name": "lstm", "d_model": 8, "hidden": 8},
            optimizer={"name": "sgd", "lr": 0.01},
            loss={"name": "focal"},
            schedule={"name": "one_cycle"},
        ),
        _body(
            "grouped",
            data={"path": "pairs", "group": "symbol", "normalize": "standard", "shuffle": "block"},
            loss={"name": "ordinal"},
        ),
        _body("default", model={"name": "vivit", "d_model": 4, "heads": 2, "layers": 1}),
        _body("started", model={"name": "mlp", "d_model": 8, "hidden": 8, "dropout": 0.3}),
        _body("killed", model={"name": "gru", "d_model": 8, "hidden": 8}),
        _body("preempted", model={"name": "tcn", "d_model": 4}),
        _body("cancelled", data={"embargo_s": 2.0}),
    )
}
# What the oldest version refuses.
NEW = ("grouped", "started")
PAUSED = ("average", "recomputing", "momentum", "grouped", "started", "default")
_NO_MORE: Json = {"every_s": None}
FINISHED: dict[str, Json] = {
    "first": _body("first", checkpoint=_NO_MORE),
    "other": _body("other", data={"embargo_s": 1.0}, model={"d_model": 4}, checkpoint=_NO_MORE),
    "second": _body("second", training={"seed": 1}, checkpoint=_NO_MORE),
}
WAITING: dict[str, Json] = {"queued": _body("queued", training={"seed": 2})}
# The default model is large: not for what is kept in the repository.
KEPT = tuple(name for name in STOPPED if name != "default")
# What a database holds is the same whatever is trained: on the second engine a part is enough.
FEW = ("average", "started", "killed", "preempted", "cancelled")


def write_datasets(data_root: Path) -> None:
    """Write what the jobs train on: one series; two; and one with a feature that is no number."""
    draw = np.random.default_rng(0)
    for path, num_series, is_bad in (("demo", 1, False), ("pairs", 2, False), ("bad", 1, True)):
        values = draw.integers(-16, 17, (ROWS, 4)).astype(np.float32) / 8
        labels = np.digitize(values[:, 0] + values[:, 1], [-1.0, 0.0, 1.0]).astype(np.int8)
        if is_bad:
            values[-1, 0] = np.nan
        columns = {
            "timestamp": pa.array(np.arange(ROWS, dtype=np.int64) * 1_000_000, pa.timestamp("us", tz="UTC")),
            "features": pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), 4),
            "label": pa.array(labels),
        }
        if num_series > 1:
            columns["symbol"] = pa.array([f"S{row % num_series}" for row in range(ROWS)])
        (data_root / path).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), data_root / path / "part.parquet", compression="zstd")


@dataclass
class Service:
    """`saimp up` of a source tree, on a root of its own."""

    process: subprocess.Popen[bytes]
    output: Path
    url: str = ""

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request: (status, what came)."""
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, content, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, headers, found = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, headers, found = error.code, error.headers, error.read()
        return status, json.loads(found) if "json" in headers.get("Content-Type", "") else found

    def get(self, path: str) -> Json:
        """Read what has to be there."""
        status, found = self.ask("GET", path)
        assert status == 200, (path, status, found)
        assert isinstance(found, dict)
        return found

    def post(self, path: str, body: Any = None) -> Json:
        """Do what has to work."""
        status, found = self.ask("POST", path, body)
        assert status in (200, 201, 202), (path, status, found, self.output.read_text()[-2000:])
        assert isinstance(found, dict)
        return found

    def job(self, job_id: str) -> Json:
        return self.get(f"/jobs/{job_id}")

    def jobs(self) -> list[Json]:
        """Read every job, the oldest first."""
        listed = self.get("/jobs?limit=100")["data"]
        return [self.job(one["id"]) for one in reversed(listed)]

    def reaches(self, job_id: str, *statuses: str, within_s: float = 120.0) -> Json:
        """Wait until a job has one of the statuses."""

        def there() -> Json | None:
            found = self.job(job_id)
            over = found["status"] in ("succeeded", "failed", "cancelled")
            assert found["status"] in statuses or not over, found["reason"]
            return found if found["status"] in statuses else None

        found = eventually(there, within_s=within_s, what=f"{statuses} of {job_id}")
        assert found is not None
        return found

    def trains(self, job_id: str, epoch: int = 2) -> None:
        """Let a job get into the middle of an epoch, and hold its process there.

        It is led there in small steps, for it is fast; the log tells at once how far it is.
        """

        def there() -> bool:
            runner = self.runner()
            if runner is not None:
                runner.resume()
                time.sleep(0.02)
                runner.suspend()
            said = self.ask("GET", f"/jobs/{job_id}/logs?tail=1000")[1]
            text = said.decode() if isinstance(said, bytes) else ""
            begun = text.rpartition(f"Epoch {epoch}/")[2] if f"Epoch {epoch}/" in text else ""
            return bool(re.search(r"Batch +[1-9]", begun))

        eventually(there, what=f"epoch {epoch} of {job_id}")
        assert self.job(job_id)["status"] == "running"

    def obeys(self) -> None:
        """Let the process that is held go on, once the order it is to find has had time to reach it."""
        time.sleep(1.0)
        runner = self.runner()
        assert runner is not None
        runner.resume()

    def runner(self) -> psutil.Process | None:
        """Find the process that trains: the child of a child of the worker."""
        with suppress(psutil.NoSuchProcess):
            for part in psutil.Process(self.process.pid).children():
                for server in part.children():
                    for runner in server.children():
                        return runner
        return None

    def numbers(self, job_id: str) -> Json:
        """Read what a job has computed."""
        found = self.get(f"/jobs/{job_id}/metrics?scope=epoch,batch")
        return {"epochs": found["epochs"], "batches": found["batches"]}

    def told(self, job_id: str) -> Json:
        """Read all that is served of a job, besides itself."""
        return {**self.numbers(job_id), "events": self.get(f"/jobs/{job_id}/events?limit=1000")["data"]}

    def cut(self) -> None:
        """End everything at once, as a power cut does."""
        tree = [psutil.Process(self.process.pid)]
        tree += tree[0].children(recursive=True)
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.suspend()
        for one in tree:
            with suppress(psutil.NoSuchProcess):
                one.kill()
        self.process.wait(30)
        psutil.wait_procs(tree, 30)


@contextmanager
def service(tree: Path, root: Path, url: str = "", *, part: str = "up") -> Iterator[Service]:
    """Run the service of a source tree for the length of the block. url: of the database; part: or "api"."""
    output = root.parent / f"{root.name}.{time.time_ns()}.out"
    more = {"SAIMP_DATABASE_URL": url} if url else {}
    env = environment(root, SAIMP_AUTH="off", SAIMP_PORT="0", PYTHONPATH=str(tree), **more)
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "app.cli.main", part],
            cwd=root,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    running = Service(process, output)

    def is_up() -> bool:
        said = output.read_text(errors="replace")
        assert process.poll() is None, said
        found = re.search(r"listening on (http://\S+)", said)
        running.url = found[1] if found else ""
        return bool(found) and (part == "api" or "worker ready" in said)

    try:
        eventually(is_up, what="the start of the service")
        yield running
        if process.poll() is None:
            process.terminate()
            process.wait(60)
    finally:
        if process.poll() is None:
            running.cut()


def lead(live: Service, names: tuple[str, ...]) -> Json:
    """Lead the life, up to just before the power cut: what was served last, of each job.

    names: of STOPPED, those that come to be. A version that refuses a body goes without that job.
    """
    ids = {}

    def submit(body: Json) -> str | None:
        status, made = live.ask("POST", "/jobs", body)
        if status == 422 and body["name"] in NEW:
            return None
        assert status == 201, made
        ids[body["name"]] = str(made["id"])
        return str(made["id"])

    for name in FINISHED:
        submit(FINISHED[name])
    bad = submit(_body("bad", data={"path": "bad", "split": {"train": 0.8, "val": 0.2}}))
    for name in FINISHED:
        live.reaches(ids[name], "succeeded")
    assert bad is not None
    live.reaches(bad, "failed")
    is_promoted = live.ask("POST", f"/jobs/{ids['other']}/promote")[0] == 200
    for name in names:
        body = _started(STOPPED[name], ids)
        if name in PAUSED and (job_id := submit(body)) is not None:
            live.trains(job_id)
            live.post(f"/jobs/{job_id}/pause")
            live.obeys()
            live.reaches(job_id, "paused")
    if (job_id := submit(STOPPED["cancelled"])) is not None:
        live.trains(job_id)
        live.post(f"/jobs/{job_id}/pause")
        live.obeys()
        live.reaches(job_id, "paused")
        live.post(f"/jobs/{job_id}/cancel")
        live.reaches(job_id, "cancelled")
        child = str(live.post(f"/jobs/{job_id}/retry")["id"])
        live.trains(child, epoch=3)
        live.post(f"/jobs/{child}/pause")
        live.obeys()
        live.reaches(child, "paused")
        live.ask("PATCH", f"/jobs/{child}", {"name": "child"})
        ids["child"] = child
    preempted = submit(STOPPED["preempted"])
    assert preempted is not None
    live.trains(preempted)
    live.post("/queue/drain?running=preempt")
    live.obeys()
    eventually(lambda: live.job(preempted)["status"] == "queued", what="the drain")
    killed = submit({**STOPPED["killed"], "priority": 1})
    assert killed is not None
    waiting = submit(WAITING["queued"])
    submit({**_body("dependent"), "depends_on": [waiting]})
    live.post("/queue/open")
    live.trains(killed)
    served = {name: {"job": live.job(job_id), **live.told(job_id)} for name, job_id in ids.items()}
    served["other"]["is_promoted"] = is_promoted
    return served


def alone(live: Service, names: tuple[str, ...]) -> Json:
    """Run each job that was not finished undisturbed: its numbers."""
    ids: dict[str, str] = {"first": str(live.post("/jobs", FINISHED["first"])["id"])}
    live.reaches(ids["first"], "succeeded")
    for name in names:
        status, made = live.ask("POST", "/jobs", _started(STOPPED[name], ids))
        if status == 201:
            ids[name] = str(made["id"])
    for name, body in WAITING.items():
        ids[name] = str(live.post("/jobs", body)["id"])
    for job_id in ids.values():
        live.reaches(job_id, "succeeded")
    return {name: {"id": job_id, **live.numbers(job_id)} for name, job_id in ids.items()}


def _started(body: Json, ids: Mapping[str, str]) -> Json:
    return {**body, "init_from": ids["first"]} if body["name"] == "started" else body
