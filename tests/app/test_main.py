"""The HTTP process as a process: what it imports, weighs, prints, and how it ends."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import anyio
import httpx2
import psutil
import pytest

from app.db import connect
from app.jobs.files import Paths
from app.jobs.queue import Claim, Facts, Queue
from app.main import create_app, listen
from app.migrate import WrongSchema, migrate
from app.settings import Settings
from tests.factories import OWNER, SLOT, make_request, write_dataset
from tests.processes import environment, eventually

SERVE = "from app.main import serve; from app.settings import load; serve(load())"


@contextmanager
def serving(root: Path, **settings: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the HTTP process on a free port, as (process, URL)."""
    settings = {"SAIMP_PORT": "0", **settings}
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE],
        cwd=root,
        env=environment(root, **settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("listening on http://127.0.0.1:"), process.communicate()
        yield process, line.removeprefix("listening on ").strip()
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Make roots with a schema and a dataset."""
    migrate(url(tmp_path), Paths(tmp_path / "data", tmp_path / "logs"))
    write_dataset(tmp_path / "data" / "demo")
    return tmp_path


def url(root: Path) -> str:
    return Settings(data_root=root / "data").database


def test_the_http_process_never_loads_torch() -> None:
    check = "import app.main, sys; assert not {'torch', 'pyarrow', 'matplotlib', 'worker'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True, timeout=60)


def test_at_rest_it_weighs_less_than_120_mb(root: Path) -> None:
    with serving(root) as (process, home):
        for path in ("/healthz", "/readyz", "/jobs", "/openapi.json", "/docs"):
            httpx2.get(home + path)
        assert psutil.Process(process.pid).memory_info().rss < 120 * 2**20


def test_it_takes_jobs_over_a_real_socket(root: Path) -> None:
    with serving(root) as (_, home):
        job = httpx2.post(f"{home}/jobs", json={"data": {"path": "demo"}}).json()
        assert httpx2.get(home + job["links"]["self"]).json()["status"] == "queued"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_zero_though_someone_waits(root: Path, number: signal.Signals) -> None:
    database = connect(url(root))
    row, _ = Queue(database).submit(make_request())
    database.dispose()
    with (
        serving(root) as (process, home),
        socket.create_connection(("127.0.0.1", int(home.rpartition(":")[2]))) as link,
    ):
        link.sendall(f"GET /jobs/{row.id}?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for _ in range(3):  # what came later is answered: so the first has been read
            assert httpx2.get(f"{home}/version").status_code == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        link.settimeout(10)
        assert link.recv(64).startswith(b"HTTP/1.1 200 ")
        assert errors == ""


def test_a_body_is_cut_off_while_it_streams_in(root: Path) -> None:
    with (
        serving(root) as (_, home),
        socket.create_connection(("127.0.0.1", int(home.rpartition(":")[2]))) as link,
    ):
        head = (
            "POST /jobs HTTP/1.1",
            "Host: localhost",
            "Content-Type: application/json",
            "Transfer-Encoding: chunked",
        )
        link.sendall("\r\n".join((*head, "", "")).encode())
        link.settimeout(10)
        piece = b"10000\r\n" + b" " * 65536 + b"\r\n"
        for _ in range(17):  # a little more than 1 MiB, and no end
            link.sendall(piece)
        assert link.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_clients_that_leave_or_idle_hold_nothing(root: Path) -> None:
    database = connect(url(root))
    queue = Queue(database)
    claim = claim_of(queue)
    content = os.urandom(4 * 2**20)
    save_best(root, queue, claim, content)
    database.dispose()
    with serving(root) as (process, home), ExitStack() as idle:
        address, port = f"/jobs/{claim.job_id}/checkpoint", int(home.rpartition(":")[2])
        assert httpx2.get(home + address).content == content
        for _ in range(50):
            link = idle.enter_context(socket.create_connection(("127.0.0.1", port)))
            link.sendall(b"GET /jobs HTTP/1.1\r\nHost: localhost\r\n")  # and no more
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", port)) as link:
                link.sendall(f"GET {address} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
                link.recv(1000)
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        rest = httpx2.get(home + address, headers={"Range": "bytes=1000-"})
        assert (rest.status_code, rest.content) == (206, content[1000:])
        idle.close()
        server = psutil.Process(process.pid)

        def held() -> list[str]:
            files = [file.path for file in server.open_files() if file.path.endswith(".pth")]
            links = [link.status for link in server.net_connections("tcp")]
            return [*files, *(status for status in links if status != psutil.CONN_LISTEN)]

        eventually(lambda: not held(), what="every handle let go")


def claim_of(queue: Queue) -> Claim:
    queue.submit(make_request())
    claim = queue.claim(OWNER, SLOT)
    assert claim is not None
    return claim


def save_best(root: Path, queue: Queue, claim: Claim, content: bytes) -> None:
    name, digest = f"attempts/{claim.attempt}/best.pth", hashlib.sha256(content).hexdigest()
    path = root / "data" / "jobs" / claim.job_id / name
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    best = {"best_epoch": 1, "best_val_loss": 1.0, "best_file": name, "best_sha256": digest}
    queue.record(claim.job_id, claim.attempt, Facts(progress={**best, "best_bytes": len(content)}))


def test_a_connection_sends_what_it_has_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY), "else each answer takes 44 ms"


def test_a_taken_port_is_a_sentence(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [sys.executable, "-c", SERVE],
            cwd=root,
            env=environment(root, SAIMP_PORT=str(port)),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_a_schema_it_says_what_to_run(tmp_path: Path) -> None:
    serve_now = SERVE.replace("serve(load())", "import app.main; app.main.SCHEMA_WAIT_S = 0.2; serve(load())")
    ended = subprocess.run(
        [sys.executable, "-c", serve_now],
        cwd=tmp_path,
        env=environment(tmp_path, SAIMP_PORT="0"),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    assert "saimp migrate" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_it_waits_for_a_schema_that_is_on_its_way(tmp_path: Path) -> None:
    timer = threading.Timer(1.0, migrate, [url(tmp_path), Paths(tmp_path / "data", tmp_path / "logs")])
    timer.start()
    with serving(tmp_path) as (_, home):
        assert httpx2.get(f"{home}/jobs").status_code == 200
    timer.join()


def test_under_another_server_the_schema_is_checked_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.main.SCHEMA_WAIT_S", 0.1)
    app = create_app(Settings(data_root=tmp_path / "data", logs_root=tmp_path / "logs"))

    async def start() -> None:
        async with app.router.lifespan_context(app):
            raise AssertionError("it started")

    with pytest.raises(WrongSchema, match="saimp migrate"):
        anyio.run(start)
