"""The application on a real socket, for the client and the command line."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.testclient import TestClient

from app.api.services import Services
from app.main import create_app, listen
from app.migrate import upgrade
from app.settings import Settings
from tests.app.api.service import Service
from tests.factories import write_dataset


@dataclass(frozen=True)
class Live(Service):
    """A service at a URL, and the queue that drives its jobs."""

    url: str


@contextmanager
def live_service(root: Path) -> Iterator[Live]:
    """Serve a migrated database and a dataset called demo on a free port."""
    settings = Settings(data_root=root / "data", logs_root=root / "logs")
    app = create_app(settings)
    services: Services = app.state.services
    upgrade(services.database)
    write_dataset(settings.data_root / "demo")
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield Live(
            TestClient(app, base_url="http://127.0.0.1"),
            services,
            f"http://127.0.0.1:{listener.getsockname()[1]}",
        )
    finally:
        services.stopping.set()
        server.should_exit = True
        thread.join()
        listener.close()
