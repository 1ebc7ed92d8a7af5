"""A real S3 API on loopback, buckets in it, and a line to it that can be cut."""

from __future__ import annotations

import itertools
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from app.datasets.places import S3Path, s3_root

moto = pytest.importorskip("moto.server")
fs = pytest.importorskip("pyarrow.fs")

# No account anywhere: the server takes any key.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}

_serial = itertools.count()


@contextmanager
def serving() -> Iterator[str]:
    """Serve the S3 API for the length of the block; gives host:port."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        yield f"{host}:{port}"
    finally:
        server.stop()


def make_bucket(endpoint: str) -> str:
    """Make an empty bucket; returns the URL of a prefix in it."""
    name = f"bucket-{next(_serial)}"
    query = f"scheme=http&endpoint_override={endpoint}&region=us-east-1"
    system, _ = fs.FileSystem.from_uri(f"s3://{name}?{query}&allow_bucket_creation=true")
    system.create_dir(name)
    return f"s3://{name}/desk?{query}"


def upload(folder: Path, url: str) -> S3Path:
    """Copy a folder's files below a prefix."""
    system, key = fs.FileSystem.from_uri(url)
    for path in folder.rglob("*"):
        if path.is_file():
            with system.open_output_stream(f"{key}/{path.relative_to(folder).as_posix()}") as stream:
                stream.write(path.read_bytes())
    return s3_root(url)


class Line:
    """Passes bytes on to a server, until it is cut or goes silent."""

    def __init__(self, endpoint: str) -> None:
        self._target = endpoint.split(":")
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._passes = threading.Event()
        self._passes.set()
        self.endpoint = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def silence(self) -> None:
        """Keep every connection, and pass nothing on."""
        self._passes.clear()

    def cut(self) -> None:
        """Close everything; nobody is let in any more."""
        self._passes.set()
        self._listener.close()
        for one in self._open:
            _hang_up(one)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection((self._target[0], int(self._target[1])))
            self._open += [client, server]
            for pair in ((client, server), (server, client)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(1 << 16):
                self._passes.wait()
                target.sendall(content)
        for one in (source, target):
            _hang_up(one)


def _hang_up(one: Any) -> None:
    with suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
