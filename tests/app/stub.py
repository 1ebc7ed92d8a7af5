"""An HTTP server that answers by script, so that tests can have a network misbehave."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Answer:
    """What the server says. breaks_at: it hangs up after so many bytes of the body."""

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    breaks_at: int | None = None

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Stub:
    """A server and what it was asked. After the script, the last answer is repeated."""

    url: str
    script: list[Answer]
    requests: list[Request] = field(default_factory=list)


@contextmanager
def stub(script: Sequence[Answer]) -> Iterator[Stub]:
    """Serve the script on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            found.requests.append(Request(self.command, self.path, dict(self.headers), body))
            reply = found.script.pop(0) if len(found.script) > 1 else found.script[0]
            self.send_response(reply.status)
            headers = {"Content-Length": str(len(reply.content)), **reply.headers}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.content[: reply.breaks_at])
            if reply.breaks_at is not None:
                self.close_connection = True

        do_GET = do_HEAD = do_POST = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = Stub(f"http://127.0.0.1:{server.server_port}", list(script))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
