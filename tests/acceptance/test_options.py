"""What a job may ask of its data and its start, through the real worker."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from app.jobs.states import Status
from tests.acceptance.site import QUICK, Site, ended, log_of, open_queue, submit, worker
from tests.factories import write_dataset
from worker.models.load import load


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("site")
    with open_queue(root) as queue, worker(root) as process:
        write_dataset(root / "data" / "holes", rows=400, bad_row=123)
        yield Site(root, queue, process)


def data(**options: object) -> dict[str, object]:
    return {"data": {**QUICK["data"], **options}}


@pytest.mark.parametrize("normalize", ["standard", "robust"])
def test_normalisation_comes_with_the_checkpoint(site: Site, normalize: str) -> None:
    row = ended(site.queue, submit(site.queue, **data(normalize=normalize)))
    assert row.status == Status.SUCCEEDED, row.reason_message
    model, _ = load(site.root / "data" / "jobs" / row.id / "saimp_best.pth")
    center_F = model.state_dict()["normalizer.center_F"]
    assert bool((center_F != 0).all())


def test_a_shuffled_job_trains_on_every_window_in_another_order(site: Site) -> None:
    shuffled = ended(site.queue, submit(site.queue, **data(shuffle="block", shuffle_buffer=64)))
    in_order = ended(site.queue, submit(site.queue))
    assert shuffled.status == in_order.status == Status.SUCCEEDED, shuffled.reason_message
    assert shuffled.best_sha256 != in_order.best_sha256


@pytest.mark.parametrize(("rule", "dropped"), [("skip", 4), ("zero", None)])
def test_features_that_are_not_finite_are_skipped_or_zeroed(
    site: Site, rule: str, dropped: int | None
) -> None:
    row = ended(site.queue, submit(site.queue, **data(path="holes", non_finite=rule)))
    assert row.status == Status.SUCCEEDED, row.reason_message
    assert (row.plan["dropped"]["non_finite"] or None) == dropped, (
        "a window of 4 rows: 4 windows hold the row"
    )
    assert "[WARN] non_finite: 1 rows" in log_of(site.root, row)


def test_a_job_starts_from_the_best_of_another(site: Site) -> None:
    first = ended(site.queue, submit(site.queue))
    gentle = {"optimizer": {"name": "sgd", "lr": 1e-12, "momentum": 0.0, "weight_decay": 0.0}}
    second = ended(site.queue, submit(site.queue, init_from=first.id, **gentle))
    assert second.status == Status.SUCCEEDED, second.reason_message
    ours, theirs = (
        torch.load(site.root / "data" / "jobs" / row.id / "saimp_best.pth", weights_only=True)
        for row in (second, first)
    )
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, atol=1e-6, rtol=0)
