"""The service in numbers, in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fastapi import APIRouter
from starlette.responses import PlainTextResponse, Response

from app.api import views
from app.api.services import Services, Use
from app.jobs.states import Status
from app.version import version_text

router = APIRouter(tags=["service"])

Sample = tuple[Mapping[str, str], float | None]


@router.get("/metrics", operation_id="read_service_metrics", response_class=PlainTextResponse)
def read_service_metrics(use: Use) -> Response:
    """Read jobs by status, workers, and what the running jobs do, for Prometheus to scrape."""
    lines = [line for family in _families(use) for line in _written(*family)]
    return Response("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4; charset=utf-8")


def _families(use: Services) -> Iterator[tuple[str, str, list[Sample]]]:
    """List the families as (name, meaning, samples)."""
    now, counts = use.queue.now(), use.queue.counts()
    running, _ = use.queue.page(statuses=[Status.RUNNING])
    alive = [worker for worker in use.queue.workers() if views.is_alive(worker, now)]
    progress = {row.id: views.progress(row) for row in running}

    yield "saimp_info", "The version of the service.", [({"version": version_text()}, 1)]
    yield (
        "saimp_jobs",
        "Jobs by status.",
        [({"status": status}, counts.get(status, 0)) for status in Status],
    )
    yield "saimp_workers", "Workers that have been heard of lately.", [({}, len(alive))]
    yield "saimp_queue_open", "1 while jobs are started, 0 while drained.", [({}, not use.queue.drained_at())]
    yield (
        "saimp_job_progress_ratio",
        "How far a running job is, from 0 to 1.",
        [({"job": job_id}, found["percent"] / 100) for job_id, found in progress.items()],
    )
    yield (
        "saimp_job_samples_per_second",
        "The speed of a running job in training.",
        [({"job": job_id}, found["samples_per_s"]) for job_id, found in progress.items()],
    )
    yield (
        "saimp_job_best_val_loss",
        "The best validation loss of a running job so far.",
        [({"job": row.id}, row.best_val_loss) for row in running],
    )
    yield (
        "saimp_job_crashes",
        "Attempts in a row that ended without progress.",
        [({"job": row.id}, row.crashes) for row in running],
    )


def _written(name: str, meaning: str, samples: list[Sample]) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} gauge"
    for labels, value in samples:
        if value is not None:
            named = ",".join(f'{key}="{text}"' for key, text in labels.items())
            yield f"{name}{f'{{{named}}}' if named else ''} {float(value):.10g}"
