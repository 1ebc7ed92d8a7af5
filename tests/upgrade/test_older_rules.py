"""What was accepted and settled by other rules than today's stays accepted and settled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from app.jobs.queue import Queue
from app.jobs.tables import job
from tests.acceptance.site import QUICK, ended, open_queue, submit, worker


def test_a_job_goes_on_by_the_rules_of_its_first_attempt(tmp_path: Path) -> None:
    with open_queue(tmp_path) as queue:
        table = pq.read_table(tmp_path / "data" / "demo" / "part-000.parquet")
        flat = table["features"].combine_chunks().flatten()
        columns = {f"f{place}": flat.take(pa.array(range(place, len(flat), 4))) for place in range(4)}
        (tmp_path / "data" / "wide").mkdir()
        wide = pa.table({"timestamp": table["timestamp"], "label": table["label"], **columns})
        pq.write_table(wide, tmp_path / "data" / "wide" / "part.parquet")
        data: dict[str, Any] = {**QUICK["data"], "path": "wide"}
        with worker(tmp_path):
            named = submit(queue, data={**data, "features": ["f0", "f2"]})
            resolved = ended(queue, named).resolved
            # As if a version had taken f0 and f2 of these columns, and two classes of one name.
            alike = ["a", "a", "b", "c"]
            queue.drain()
            waiting = submit(queue, data=data)
            rewrite(queue, waiting, resolved=resolved, config=with_classes(queue, waiting, alike))
            queue.open()
            assert ended(queue, waiting).resolved["features"] == ["f0", "f2"]
        assert (queue.get(waiting).status, queue.get(waiting).resolved["classes"]) == ("succeeded", alike)
        assert queue.get(waiting).best_val_loss == queue.get(named).best_val_loss


def with_classes(queue: Queue, job_id: str, classes: list[str]) -> dict[str, Any]:
    config = queue.get(job_id).config
    return {**config, "data": {**config["data"], "classes": classes}}


def rewrite(queue: Queue, job_id: str, **columns: Any) -> None:
    with queue.database.writing() as connection:
        connection.execute(job.update().where(job.c.id == job_id).values(**columns))
