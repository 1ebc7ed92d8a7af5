"""A custom model trains through the service where the operator allows it, and nowhere else."""

from __future__ import annotations

from pathlib import Path

from app.jobs.states import Status
from tests.acceptance.site import ended, open_queue, submit
from tests.processes import started

MODEL = {"name": "custom", "target": "tests.worker.models.custom_nets:Windows", "params": {}}


def test_a_custom_model_needs_the_operators_leave(tmp_path: Path) -> None:
    with open_queue(tmp_path) as queue:
        refused = submit(queue, model=MODEL)
        with started("-m", "worker", root=tmp_path) as process:
            row = ended(queue, refused)
            assert (row.status, row.reason_code) == (Status.FAILED, "config_invalid")
            assert process.stop() == 0
        allowed = submit(queue, model=MODEL)
        with started("-m", "worker", root=tmp_path, SAIMP_CUSTOM_MODELS="other, tests.worker") as process:
            row = ended(queue, allowed)
            assert row.status == Status.SUCCEEDED, row.reason_message
            assert process.stop() == 0
