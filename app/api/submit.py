"""Check a job before it is queued: config, dependencies and data, all problems at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.api.explain import read_job, remainder
from app.api.services import Services
from app.db import Damaged
from app.errors import IllegalTransition, InvalidRequest, Problem, shown
from app.jobs.config import JobRequest, stored
from app.jobs.custom import custom_model_problems
from app.jobs.foresight import Foresight, Gpu, foresee
from app.jobs.queue import Row
from app.jobs.sizes import UNKNOWN
from app.jobs.start_weights import Shaped, unfit_weights

if TYPE_CHECKING:
    from app.datasets.preflight import Preflight


def admit(
    services: Services,
    value: Any,
    found: list[Problem],
    key: str | None,
    *,
    parent_id: str | None = None,
    is_retry: bool = False,
) -> tuple[Row, bool]:
    """Queue the job a body describes, as (its row, whether it is new).

    A repeated key returns the first job. parent_id: the job it is made from; is_retry: it goes on from there.
    Raises InvalidRequest with every problem.
    """
    request, problems = read_job(value, found)
    if request is not None and key is not None:
        first = services.queue.submitted(request, key, parent_id)
        if first is not None:
            return first, False
    request, data = _checked(services, value, request, problems)
    return services.queue.submit(
        request,
        data_fingerprint=data.dataset.fingerprint if data.dataset else None,
        plan=_plan(request, data, Foresight(UNKNOWN)),
        warnings=_warnings(services, request, data),
        idempotency_key=key,
        parent_id=parent_id,
        is_retry=is_retry,
    )


def plan(services: Services, value: Any, found: list[Problem]) -> dict[str, Any]:
    """Say what the job a body describes would do. Raises InvalidRequest with every problem."""
    request, problems = read_job(value, found)
    request, data = _checked(services, value, request, problems)
    foresight = _foresight(services, request, data)
    if foresight.problems:
        raise InvalidRequest(problems=foresight.problems)
    warnings = [{"code": code, "message": message} for code, message in foresight.warnings]
    return {
        "config": request.model_dump(mode="json"),
        "warnings": [*_warnings(services, request, data), *warnings],
        **_plan(request, data, foresight),
    }


def _checked(
    services: Services, value: Any, request: JobRequest | None, problems: list[Problem]
) -> tuple[JobRequest, Preflight]:
    """Check dependencies and data; of a refused body as much of it as is sound."""
    known = request or remainder(value, problems)
    data = None
    if known is not None:
        data = _preflight(services, known)
        problems = [
            *problems,
            *services.queue.dead_dependencies(known.depends_on),
            *_bad_start(services, known, data),
            *custom_model_problems(known.model, services.settings.custom_prefixes),
            *data.errors,
            *_equal_names(data),
        ]
    if problems or request is None or data is None:
        raise InvalidRequest(problems=problems)
    return request, data


def _equal_names(data: Preflight) -> list[Problem]:
    """Refuse classes that scores by name could not tell apart. Jobs that are here already keep theirs."""
    names = (data.dataset.classes if data.dataset else None) or ()
    twice = sorted({name for name in names if names.count(name) > 1})
    hint = "Give each class a name of its own, in data.classes or in the dataset's metadata."
    return [
        Problem("/data/classes", "equal_names", f"two classes are called {shown(name)!r}", hint)
        for name in twice
    ]


def _bad_start(services: Services, request: JobRequest, data: Preflight) -> list[Problem]:
    """List what is wrong with `init_from`: the job it names, else the shapes of its weights."""
    problems = services.queue.bad_start(request)
    if problems or request.init_from is None:
        return problems
    ours, theirs = _shaped(request, data), _shaped_like(services, services.queue.get(request.init_from))
    if ours is None or theirs is None:  # told by the worker, then
        return []
    return unfit_weights(ours, theirs, services.settings.custom_prefixes)


def _shaped_like(services: Services, row: Row) -> Shaped | None:
    """Find what shapes a job's weights have: as it was settled, or as its data are while it waits."""
    request = stored(whole(row).config)
    if row.resolved is None:
        return _shaped(request, _preflight(services, request))
    return Shaped(request, tuple(row.resolved["shape"]), len(row.resolved["classes"]))


def whole(row: Row) -> Row:
    """Give a row whose config can be gone on with. Raises IllegalTransition."""
    if isinstance(row.config, Damaged):
        raise IllegalTransition(
            "The row of the job is damaged: its config cannot be read.",
            "Cancel or delete it; submit it again.",
        )
    return row


def _shaped(request: JobRequest, data: Preflight) -> Shaped | None:
    if data.dataset is None or data.plan is None:
        return None
    return Shaped(request, data.dataset.features.shape, data.plan.num_classes)


def _preflight(services: Services, request: JobRequest) -> Preflight:
    # pyarrow takes 40 MB: an API at rest does without.
    from app.datasets.preflight import preflight  # noqa: PLC0415

    settings = services.settings
    return preflight(
        settings.sources,
        request,
        limit_s=settings.preflight_s,
        budget_bytes=settings.stream_budget,
        plans=services.paths.plans(),
    )


def _plan(request: JobRequest, data: Preflight, foresight: Foresight) -> dict[str, Any]:
    from app.datasets.preflight import plan_document  # noqa: PLC0415

    return plan_document(
        request,
        data.plan,
        foresight.sizes.model(),
        seconds_per_epoch=foresight.seconds_per_epoch,
        memory_bytes=foresight.memory_bytes,
    )


def _foresight(services: Services, request: JobRequest, data: Preflight) -> Foresight:
    if data.dataset is None or data.plan is None:
        return Foresight(UNKNOWN)
    return foresee(
        request,
        shape=data.dataset.features.shape,
        num_classes=data.plan.num_classes,
        num_windows=data.plan.train.windows,
        gpu=None if request.device == "cpu" else _gpu(services),
        past=services.queue.trained(request.model.name),
        custom_prefixes=services.settings.custom_prefixes,
    )


def _gpu(services: Services) -> Gpu | None:
    """Find the GPU of a worker, as far as it has said."""
    for worker in services.queue.workers():
        machine = worker.machine
        if machine.get("gpu") and machine.get("vram_total"):
            return Gpu(machine["gpu"], int(machine["vram_total"] * services.settings.vram_fraction))
    return None


def _warnings(services: Services, request: JobRequest, data: Preflight) -> list[dict[str, str]]:
    found = [{"code": code, "message": message} for code, message in data.warnings]
    machines = [worker.machine for worker in services.queue.workers()]
    if request.device.startswith("cuda") and machines and not any(m.get("gpu") for m in machines):
        message = f"device is {request.device!r}, and no worker has a GPU just now: the job would fail."
        found.append({"code": "gpu_missing", "message": message})
    if request.optimizer.name == "adamw_8bit" and machines and not any(m.get("has_8bit") for m in machines):
        message = "No worker has the package bitsandbytes, which adamw_8bit needs: the job would fail."
        found.append({"code": "package_missing", "message": message})
    return found
