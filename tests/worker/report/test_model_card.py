"""The report: right numbers, honest limits, text that survives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest

from app.jobs.config import JobRequest
from tests.worker.report.test_log import epoch
from worker.engine.events import BestFile, Ended, Event, OomRecovered, Prepared, Resumed, Rung, Tested, Warned
from worker.report.model_card import (
    Facts,
    ModelCard,
    make_report,
    to_markdown,
)

CLASSES = ["flat", "a|b"]
CONFUSION = [[60, 20], [5, 35]]
TRAIN = [300, 100]
ENDED = Ended("completed", "Trained 2 epochs.")


def config(**sections: Any) -> dict[str, Any]:
    body = {"name": "x", "data": {"path": "btc", "window": 4}, **sections}
    return JobRequest.model_validate(body).model_dump(mode="json")


def labels(
    median_s: float | None = None,
    max_s: float | None = None,
    val: float | None = None,
    test: float | None = None,
) -> dict[str, Any]:
    independent = {"train": None, "val": val, "test": test}
    return {"ahead_median_s": median_s, "ahead_max_s": max_s, "independent": independent}


def prepared(ahead: dict[str, Any] | None = None, horizon_s: float = 60.0) -> Prepared:
    part = {"rows": 500, "windows": 400, "start": "2026-01-01T00:00:00Z", "end": "2026-01-02T00:00:00Z"}
    data = {"fingerprint": "f" * 8, "shape": [2, 6], "classes": CLASSES, "horizon_s": horizon_s}
    return Prepared(
        resolved={
            **data,
            "effective_batch": 15,
            "precision": "fp32",
            "device": "cpu",
            "class_weights": [1.0, 10.0],
        },
        plan={
            "splits": {
                "train": {**part, "class_counts": TRAIN},
                "val": {**part, "class_counts": [80, 40]},
                "test": None,
            },
            "labels": ahead or labels(),
            "model": {"parameters": 1234, "flops_per_sample": None},
        },
    )


def best(number: int = 1, val_loss: float = 0.5) -> BestFile:
    metrics = {"val_loss": val_loss, "val_accuracy": 0.79, "val_confusion": CONFUSION, "val_ece": 0.07}
    return BestFile("best.pth", "ab" * 32, 99, None, {"epoch": number, "metrics": metrics})


def facts(*events: Event, **sections: Any) -> Facts:
    found = Facts("JOB", 1, config(**sections))
    for event in (prepared(), *events):
        found.note(event)
    return found


def test_baselines_are_those_of_the_training_frequencies() -> None:
    report = make_report(facts(epoch(0.5, best(), 0)), "succeeded", ENDED)
    found = report["validation"]["baselines"]
    assert found["majority"]["class"] == "flat"
    assert found["majority"]["macro_f1"] == pytest.approx(0.4)
    # Weights 1, 10: 300 x 1 and 100 x 10 of training, asked 80 x 1 and 40 x 10 times.
    loss = -(80 * math.log(300 / 1300) + 400 * math.log(1000 / 1300)) / 480
    assert found["class_prior"]["loss"] == pytest.approx(loss)
    assert f"| loss | 0.5000 |  | {loss:.4f} |" in to_markdown(report)


def test_the_report_is_that_of_the_best_epoch() -> None:
    done = [epoch(0.5, best(1), 0), replace(epoch(0.9, None, 1), epoch=2)]
    tested = Tested(0.6, 0.7, [[7, 3], [3, 7]])
    report = make_report(
        facts(*done, tested, OomRecovered(1, 1, Rung(1, 1, True, False), "x")), "succeeded", ENDED
    )
    assert report["best"]["epoch"] == 1
    assert report["validation"]["accuracy"] == pytest.approx(95 / 120)
    assert report["validation"]["ece"] == 0.07
    assert report["validation"]["confusion"] == CONFUSION
    assert report["test"]["accuracy"] == pytest.approx(0.7)
    assert [row["epoch"] for row in report["epochs"]] == [1, 2]
    assert report["oom_recoveries"] == 1
    assert report["config"] == config()


def test_a_resumed_run_reports_the_best_of_before() -> None:
    resumed = Resumed("r", 3, 0, 9, False, 5, 7, best(2))
    report = make_report(facts(resumed, replace(epoch(0.9, None, 1), epoch=3)), "succeeded", ENDED)
    assert report["best"]["epoch"] == 2
    assert "went on from a checkpoint" in to_markdown(report)


def test_what_is_not_finite_is_null() -> None:
    done = epoch(math.nan, best(1, math.inf), 0)
    report = make_report(facts(done), "failed", Ended("diverged", "x"))
    assert json.loads(json.dumps(report, allow_nan=False))["epochs"][0]["val_loss"] is None
    assert "|" in to_markdown(report)


def limits(*events: Event, **sections: Any) -> str:
    done = epoch(0.5, best(), 0)
    return " ".join(make_report(facts(done, *events, **sections), "succeeded", ENDED)["limits"])


def test_limits_are_said_where_they_are() -> None:
    found = limits()
    assert "No test split" in found
    assert "share 3 of 4 rows: validation is worth about 30 independent samples" in found
    assert "class weights" in found
    assert "no better" not in found
    tested = limits(Tested(0.6, 0.5, [[6, 4], [10, 0]]))
    assert "No test split" not in tested
    assert "In test, macro-F1 is no better than predicting by the most frequent class." in tested
    assert "In test, fewer than 30 samples of flat, a|b" in tested
    assert "share" not in limits(data={"path": "btc", "window": 4, "stride": 4})


@pytest.mark.parametrize(
    ("ahead", "horizon_s", "words"),
    [
        (labels(41.5, 3600.0), 0.0, "labels look 41.5 s ahead (median of label_end), at most 3,600 s."),
        (labels(41.5, 60.0), 90.0, "at most 60 s; horizon 90 s."),
        (labels(), 60.0, "labels look 60 s ahead."),
        (labels(), 0.0, "how far labels look ahead is not known (0 s assumed)."),
    ],
    ids=["label_end", "both", "horizon", "neither"],
)
def test_the_card_says_how_far_labels_look_ahead(ahead: dict[str, Any], horizon_s: float, words: str) -> None:
    found = facts(prepared(ahead, horizon_s), epoch(0.5, best(), 0))
    assert words in to_markdown(make_report(found, "succeeded", ENDED))


def test_overlapping_labels_are_worth_their_uniqueness() -> None:
    tested = Tested(0.6, 0.5, [[6, 4], [10, 0]])
    found = limits(prepared(labels(10.0, 10.0, val=12.4, test=0.3)), tested)
    assert (
        "the 120 of validation are worth about 12 independent ones (average uniqueness 0.1,"
        " Lopez de Prado 2018, ch. 4)" in found
    )
    assert "the 20 of test are worth about 1 independent ones" in found
    assert "share 3 of 4 rows, so their features are alike, too" in found


def test_the_card_shows_names_as_they_are() -> None:
    done = epoch(0.5, best(), 0)
    report = make_report(facts(done, Warned("w", "look *out*"), name="<b>|_x_"), "succeeded", ENDED)
    card = to_markdown(report)
    assert card.startswith("# Model card: \\<b\\>\\|\\_x\\_\n")
    assert "always flat" in card
    assert "look \\*out\\*" in card
    head = next(line for line in card.splitlines() if line.startswith("|  | flat |"))
    assert head == "|  | flat | a\\|b |"


def test_a_card_holds_nothing_that_a_reader_cannot_see() -> None:
    done = epoch(0.5, best(), 0)
    evil = "\x1b[2J\u202e\0 $x$ &lt;b&gt; | ![a](b)\n# head"
    report = make_report(facts(done, Warned("w", evil), name="&amp;|$"), "failed", Ended("internal", evil))
    card = to_markdown(report)
    assert card.startswith("# Model card: \\&amp;\\|\\$\n")
    shown = r"\\x1b\[2J\\u202e\\x00 \$x\$ \&lt;b\&gt; \| !\[a\](b) \# head"
    assert card.count(shown) == 2
    assert all(line.isprintable() for line in card.split("\n"))


def test_a_run_that_ends_writes_both_files(tmp_path: Path) -> None:
    sink = ModelCard(tmp_path, job_id="JOB", attempt=1, config=config())
    for event in (prepared(), epoch(0.5, best(), 0)):
        sink.write(event)
    assert list(tmp_path.iterdir()) == []
    sink.end("succeeded", ENDED)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.json", "report.md"]
    assert json.loads((tmp_path / "report.json").read_text())["job"]["reason"] == "completed"


@pytest.mark.parametrize("stopped", ["pause", "preempt"])
def test_a_run_that_will_go_on_writes_nothing(tmp_path: Path, stopped: Literal["pause", "preempt"]) -> None:
    sink = ModelCard(tmp_path, job_id="JOB", attempt=1, config=config())
    for event in (prepared(), epoch(0.5, best(), 0)):
        sink.write(event)
    sink.end("queued", Ended("user", "x", stopped=stopped))
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_a_best_has_nothing_to_report(tmp_path: Path) -> None:
    sink = ModelCard(tmp_path, job_id="JOB", attempt=1, config=config())
    sink.end("failed", Ended("internal", "x"))
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_does_not_fail_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sink = ModelCard(tmp_path / "gone", job_id="JOB", attempt=1, config=config())
    for event in (prepared(), epoch(0.5, best(), 0)):
        sink.write(event)
    sink.end("succeeded", ENDED)
    assert "report_not_written" in capsys.readouterr().err
