"""The stream over a dataset that was really opened and a split that was really planned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from app.datasets.schema import open_dataset
from app.datasets.split import plan_split
from app.jobs.config import DataConfig
from tests.worker.stream.factory import plant
from worker.stream.stream import Stream

torch.set_num_threads(1)


@pytest.mark.parametrize("num_groups", [0, 3])
@pytest.mark.parametrize("layout", ["binary", "list", "columns"])
def test_every_part_gives_the_windows_and_classes_of_its_plan(
    tmp_path: Path, layout: str, num_groups: int
) -> None:
    plant(
        tmp_path,
        rows=200,
        layout=layout,  # type: ignore[arg-type]
        num_files=3,
        num_groups=num_groups,
        order="interleaved",
    )
    data = DataConfig(path=".", shape=[2, 3], window=4, group="symbol" if num_groups else None)
    dataset = open_dataset(tmp_path, data)
    plan = plan_split(dataset, data)
    for name, part in plan.parts.items():
        batches = list(Stream(dataset, plan, name, verify_checksums=True).batches(7))
        labels = torch.cat([batch.labels_B for batch in batches])
        assert len(labels) == part.windows > 0
        counts = np.bincount(labels.numpy(), minlength=plan.num_classes)
        assert counts.tolist() == list(part.class_counts)
        assert {batch.windows_BTF().shape[1:] for batch in batches} == {(4, 2, 3)}
