"""A relay in front of a PostgreSQL server that loses the answers to some commits."""

from __future__ import annotations

import random
import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import sqlalchemy as sa

_SOCKET = ".s.PGSQL.5432"


class Proxy:
    """Pass everything on; with the chance `loses` cut a connection between a commit and its answer."""

    def __init__(self, url: str, *, seed: int = 1) -> None:
        self.loses = 0.0
        self.lost = 0
        self._draw = random.Random(seed)
        self._lock = threading.Lock()
        parsed = sa.make_url(url)
        self._server = f"{parsed.query['host']}/{_SOCKET}"
        self._folder = tempfile.mkdtemp(prefix="saimp-px-")  # sockets have short names
        self.url = parsed.update_query_dict({"host": self._folder}).render_as_string(hide_password=False)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(Path(self._folder) / _SOCKET))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more connections."""
        self._listener.close()
        shutil.rmtree(self._folder)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            server.connect(self._server)
            is_cut = threading.Event()
            answers = threading.Thread(target=self._answer, args=(server, client, is_cut), daemon=True)
            answers.start()
            with suppress(OSError):
                while asked := client.recv(65536):
                    if b"COMMIT\0" in asked and self._is_due():
                        is_cut.set()
                    server.sendall(asked)
            with suppress(OSError):
                server.shutdown(socket.SHUT_WR)
            answers.join()

    def _answer(self, server: socket.socket, client: socket.socket, is_cut: threading.Event) -> None:
        with suppress(OSError):
            while answer := server.recv(65536):
                if is_cut.is_set():  # the commit is done
                    break
                client.sendall(answer)
        with suppress(OSError):
            client.shutdown(socket.SHUT_RDWR)

    def _is_due(self) -> bool:
        with self._lock:
            is_due = self._draw.random() < self.loses
            self.lost += is_due
            return is_due
