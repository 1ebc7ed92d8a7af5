"""The HTTP process: `create_app` makes the application, `serve` runs it."""

from __future__ import annotations

import ipaddress
import logging
import re
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from types import FrameType

import uvicorn
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import migrate
from app.api import (
    artifacts,
    champions,
    checkpoint,
    datasets,
    docs,
    jobs,
    lifecycle,
    logs,
    metrics,
    openapi,
    plot,
    problems,
    prometheus,
    system,
)
from app.api.services import Services
from app.database_file import refuse_damaged
from app.db import connect
from app.errors import StorageUnavailable
from app.jobs.files import Paths
from app.jobs.queue import Queue
from app.settings import Settings, load
from app.version import version_text

SCHEMA_WAIT_S = 30.0
SHUTDOWN_S = 5
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
PARTS = (
    jobs,
    lifecycle,
    metrics,
    logs,
    plot,
    checkpoint,
    champions,
    artifacts,
    datasets,
    system,
    prometheus,
    docs,
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Make the application; null reads the settings from the environment."""
    settings = settings or load()
    database = connect(settings.database)
    paths = Paths(settings.data_root.absolute(), settings.logs_root.absolute())
    services = Services(settings, database, Queue(database, paths=paths), paths)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(migrate.wait_for_head, database, timeout_s=SCHEMA_WAIT_S)
        with suppress(StorageUnavailable):  # a database that is busy now: the next ending sees to it
            await run_in_threadpool(services.queue.follow_champion)
        yield
        services.stopping.set()
        database.dispose()

    app = FastAPI(
        title="SAIMP Train",
        summary="Train sequence models on one box, over HTTP.",
        version=version_text(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        responses=openapi.ERRORS,
    )
    app.state.services = services
    for part in PARTS:
        app.include_router(part.router)
        app.include_router(_heads(part.router))
    docs.install(app)
    openapi.install(app)
    problems.install(app)
    app.add_middleware(BrowserGuard, hosts=LOOPBACK if settings.host in LOOPBACK else None)
    return app


def _heads(router: APIRouter) -> APIRouter:
    """Make the routes that answer HEAD where the router answers GET; servers leave the body out."""
    heads = APIRouter(include_in_schema=False)
    for route in router.routes:
        if isinstance(route, APIRoute) and "GET" in (route.methods or ()):
            heads.add_api_route(
                route.path, route.endpoint, methods=["HEAD"], response_class=route.response_class
            )
    return heads


class BrowserGuard:
    """Let no other site's page read or change anything; tell browsers not to guess types nor to frame us.

    hosts: the names the service answers to; null = addresses and the names of a local network. A page whose
    own name was made to point here (DNS rebinding) comes with that name, which is a public one.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None = None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        app = self._app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if not _is_named(headers, self._hosts):
                app = _MISDIRECTED
            elif scope["method"] not in ("GET", "HEAD", "OPTIONS") and _is_foreign(headers):
                app = _FOREIGN
        await app(scope, receive, send_with_headers)


_FOREIGN = problems.problem(
    403,
    "cross_site",
    "A page of another site may not change anything here.",
    hint="Send the request from a program, or from a page of this service.",
)


_MISDIRECTED = problems.problem(
    421,
    "unknown_host",
    "This service does not answer to that host name.",
    hint="Ask for localhost or its address; behind a proxy, let that send Host: localhost.",
)


def _is_named(headers: Headers, hosts: Collection[str] | None) -> bool:
    """Whether there is one Host, and it is ours, with or without a port."""
    named = headers.getlist("host")
    if len(named) != 1:
        return False
    host = re.sub(r":\d*$", "", named[0]).strip("[]").lower()
    return _is_local(host) if hosts is None else host in hosts


def _is_local(host: str) -> bool:
    """Whether a name is an address, or one that only a local network can know."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(re.fullmatch(r"[a-z0-9_-]+(\.(local|lan|internal|localhost))?", host))
    return True


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser says that a page of another site sends this; programs send neither header."""
    origin = headers.get("origin")
    of_another_site = origin is not None and origin.partition("://")[2] != headers.get("host")
    return of_another_site or headers.get("sec-fetch-site") in ("cross-site", "same-site")


def serve(settings: Settings) -> None:
    """Serve until SIGINT or SIGTERM; port 0 takes any free one.

    Raises SystemExit with a sentence when the address is taken or the schema never comes.
    """
    app = create_app(settings)
    _wait_for_schema(app.state.services)
    listener = listen(settings.host, settings.port)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        app, log_config=None, access_log=False, timeout_graceful_shutdown=SHUTDOWN_S, server_header=False
    )
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s"
    )
    print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    _Server(config, app.state.services.stopping).run(sockets=[listener])


def _wait_for_schema(services: Services) -> None:
    file = services.database.file
    try:
        if file is not None and file.exists():
            refuse_damaged(file, services.paths.database_backup())
        migrate.wait_for_head(services.database, timeout_s=SCHEMA_WAIT_S)
    except StorageUnavailable as error:
        raise SystemExit(f"saimp api: {error.message} {error.hint or ''}") from error
    except migrate.WrongSchema as error:
        raise SystemExit(f"saimp api: {error}") from error


def listen(host: str, port: int) -> socket.socket:
    """Listen at an address. Raises SystemExit with a sentence when that cannot be."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise SystemExit(
            f"saimp api: cannot listen on {host}:{port}: {error.strerror}. "
            "Choose another with --port; 0 takes any free one."
        ) from error
    # Connections inherit it. asyncio sets it only where the protocol is named, which create_server does not:
    # the second half of each answer would wait 40 ms for the first one's acknowledgement.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Server(uvicorn.Server):
    """Uvicorn that ends with exit code 0 on a signal, and lets long polls answer first."""

    def __init__(self, config: uvicorn.Config, stopping: threading.Event) -> None:
        super().__init__(config)
        self._stopping = stopping

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not recorded as captured: uvicorn would raise it again at the end.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._stopping.set()
