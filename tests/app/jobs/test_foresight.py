"""What a plan foresees: whether a step fits the GPU, and how long an epoch takes."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from app.jobs import foresight
from app.jobs.config import JobRequest
from app.jobs.foresight import Foresight, Gpu, foresee
from app.jobs.queue import Facts, Queue, Reason
from app.jobs.sizes import Cut, Sizes
from tests.factories import OWNER, SLOT, make_request
from tests.postgres.engines import MakeQueue

GB = 2**30
RTX = Gpu("RTX 3060", 10 * GB)


def linear(fixed: float, each: float, foot: float = 0.25) -> Callable[..., Sizes]:
    """Answer as a model would that takes `fixed` GB and `each` GB a window; recomputing saves the rest."""

    def answer(_: JobRequest, *, cuts: list[Cut], **__: Any) -> Sizes:
        share = [foot if cut.is_recomputing else 1.0 for cut in cuts]
        counts = [int((fixed + each * cut.batch_size * s) * GB) for cut, s in zip(cuts, share, strict=True)]
        return Sizes(10, 20, tuple(counts))

    return answer


def foreseen(gpu: Gpu | None = RTX, past: list[Any] | None = None, **sections: Any) -> Foresight:
    return foresee(
        make_request(**sections), shape=(4, 8), num_classes=4, num_windows=1000, gpu=gpu, past=past or []
    )


def test_what_fits_is_told_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(1, 0.5))
    found = foreseen(training={"batch_size": 4})
    assert found.memory_bytes == 3 * GB
    assert (found.problems, found.warnings) == ((), ())


def test_a_batch_that_does_not_fit_is_a_warning_since_the_ladder_finds_one_that_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(1, 0.5))
    found = foreseen(training={"batch_size": 64})
    assert found.memory_bytes == 33 * GB
    assert found.problems == ()
    [(code, sentence)] = found.warnings
    assert code == "will_not_fit"
    assert "takes about 33.0 GB" in sentence
    assert "10.0 GB of the RTX 3060: about 18 would fit" in sentence


def test_without_the_ladder_it_is_refused_with_the_largest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(1, 0.5))
    [problem] = foreseen(training={"batch_size": 64}, oom={"recover": False}).problems
    assert (problem.pointer, problem.code) == ("/training/batch_size", "will_not_fit")
    assert "Lower it to 18" in str(problem.hint)


@pytest.mark.parametrize(("fixed", "is_refused"), [(12.0, False), (13.0, True)])
def test_a_model_is_refused_where_not_one_window_fits_beyond_any_error_of_the_estimate(
    fixed: float, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(fixed, 0.5))
    found = foreseen()
    assert [problem.pointer for problem in found.problems] == ["/model"] * is_refused
    assert all("not one would fit" in text for _, text in found.warnings)


def past_job(**changes: Any) -> SimpleNamespace:
    resolved = {
        "gpu": "RTX 3060",
        "precision": "fp16",
        "shape": [4, 8],
        "classes": list("abcd"),
        "batch_size": 3,
        "nominal_batch": 3,
        "effective_batch": 15,
        **changes.pop("resolved", {}),
    }
    row = {
        "config": make_request().model_dump(mode="json"),
        "resolved": resolved,
        "windows": 500,
        "epoch_s": 20.0,
        "vram_peak": 5 * GB,
        "has_descended": False,
    }
    return SimpleNamespace(**{**row, **changes})


def test_the_estimate_is_corrected_by_what_the_same_gpu_gave_a_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(1, 0.5))
    # Said to take 2.5 GB, it took 5.
    assert foreseen(past=[past_job()]).memory_bytes == 5 * GB
    others = [past_job(resolved={"gpu": "H100"}), past_job(vram_peak=None), past_job(has_descended=True)]
    assert foreseen(past=others).memory_bytes == 2.5 * GB
    assert foreseen(past=[past_job(vram_peak=500 * GB)]).memory_bytes == 10 * GB
    assert foreseen(None, past=[past_job()]).memory_bytes == 2.5 * GB


@pytest.mark.parametrize(
    ("changes", "sections", "seconds"),
    [
        ({}, {}, 40.0),
        ({"resolved": {"gpu": "H100"}}, {}, None),
        ({"resolved": {"shape": [8]}}, {}, None),
        ({}, {"training": {"batch_size": 5}}, None),
        ({}, {"data": {"path": "demo", "window": 16}}, None),
        ({}, {"model": {"name": "vivit", "layers": 3}}, None),
        ({}, {"precision": "fp32"}, None),
        ({}, {"optimizer": {"lr": 0.5}, "training": {"seed": 3}}, 40.0),
    ],
)
def test_an_epoch_takes_as_long_as_in_a_job_like_it(
    changes: dict[str, Any], sections: dict[str, Any], seconds: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "sizes", linear(1, 0.5))
    assert foreseen(past=[past_job(**changes)], **sections).seconds_per_epoch == seconds


def train(queue: Queue, *events: tuple[str, dict[str, Any]], gpu: str | None = None, **sections: Any) -> str:
    """Run a job through the queue: an epoch of 77 windows, and what else it had to tell."""
    job_id = str(queue.submit(make_request(**sections))[0].id)
    claim = queue.claim(OWNER, SLOT)
    assert claim is not None
    epoch = {"epoch": 1, "time": queue.now(), "best": False, "confusion": [], "skipped_steps": 0}
    facts = Facts(
        events=events,
        epochs=[{**epoch, "epoch": n, "duration_s": 2.0 * n, "vram_peak": 30 + n} for n in (1, 2)],
        progress={"resolved": {"gpu": gpu}, "plan": {"splits": {"train": {"windows": 77}}}},
    )
    queue.record(job_id, claim.attempt, facts)
    queue.finish(job_id, claim.attempt, Reason("completed"))
    return job_id


def recovered(batch_size: int, during: str = "training") -> tuple[str, dict[str, Any]]:
    return "oom_recovered", {"during": during, "rung": {"batch_size": batch_size}}


def test_the_past_is_read_from_jobs_that_trained(make_queue: MakeQueue) -> None:
    queue = make_queue()
    train(queue)
    train(queue, model={"name": "mlp"})
    train(queue, recovered(1))
    queue.submit(make_request())
    found = [(row.vram_peak, row.epoch_s, row.windows, row.has_descended) for row in queue.trained("vivit")]
    assert found == [(32, 3.0, 77, True), (32, 3.0, 77, False)]


def test_a_job_starts_where_the_last_of_its_needs_ended_up_on_the_same_gpu(make_queue: MakeQueue) -> None:
    queue = make_queue()
    train(queue, recovered(4), recovered(2), gpu="RTX 3060")
    train(queue, recovered(1), gpu="H100")
    train(queue, gpu="RTX 3060")
    like = make_request(optimizer={"lr": 0.5}, training={"seed": 7, "epochs": 3}).model_dump(mode="json")
    assert queue.rung_of_like(like, "RTX 3060") == {"batch_size": 2}
    assert queue.rung_of_like(like, "H100") == {"batch_size": 1}
    assert queue.rung_of_like(like, None) is None
    for sections in ({"training": {"batch_size": 5}}, {"optimizer": {"name": "sgd"}}, {"precision": "bf16"}):
        unlike = make_request(**sections).model_dump(mode="json")
        assert queue.rung_of_like(unlike, "RTX 3060") is None


def test_only_an_attempt_that_could_not_go_on_decides_where_the_next_starts(make_queue: MakeQueue) -> None:
    queue = make_queue()
    plain = train(queue, recovered(2))
    cut_off = train(queue, recovered(4), recovered(2, "the optimizer step"), recovered(1))
    assert queue.rung(plain) is None
    assert queue.rung(cut_off) == {"batch_size": 2}
