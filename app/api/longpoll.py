"""Wait for news without holding a thread: a short look every quarter second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Request
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from app.api.services import Services

LOOK_EVERY_S = 0.25
MAX_WAIT_S = 60

Wait = Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="Seconds to wait for news before answering.")]

Seen = TypeVar("Seen")


async def wait_until(
    is_news: Callable[[Seen], bool],
    look: Callable[[], Seen],
    *,
    wait_s: float,
    request: Request,
    services: Services,
) -> Seen:
    """Look until there is news, and return the last thing seen.

    Ends early when the client has gone or the service stops.
    """
    deadline = time.monotonic() + wait_s
    seen = await run_in_threadpool(look)
    while not (is_news(seen) or services.stopping.is_set() or time.monotonic() >= deadline):
        await asyncio.sleep(min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic())))
        if await request.is_disconnected():
            break
        seen = await run_in_threadpool(look)
    return seen
