"""What every handler needs, made once by create_app."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.db import Database
from app.jobs.files import Paths
from app.jobs.queue import Queue
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    settings: Settings
    database: Database
    queue: Queue
    paths: Paths
    stopping: threading.Event = field(default_factory=threading.Event)  # set: long polls answer at once


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


Use = Annotated[Services, Depends(_services)]
