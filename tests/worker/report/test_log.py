"""The log's text, to the letter: contract, section 7."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from app.jobs.config import JobRequest
from worker.engine.events import (
    BatchDone,
    BestFile,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    Prepared,
    Resumed,
    Rung,
    Tested,
    Warned,
)
from worker.report.log import Heading, LastWords, Log

CONFUSION = [[3, 1], [1, 3]]


def batch(number: int, **memory: int) -> BatchDone:
    return BatchDone(1, number, 1, 1.38, 1 / 3, None, None, 0.0, **memory)


def epoch(val_loss: float, best: BestFile | None, stale: int, patience: int | None = 3) -> EpochDone:
    return EpochDone(
        epoch=1,
        train_loss=1.4,
        train_accuracy=0.4,
        val_loss=val_loss,
        val_accuracy=0.412,
        confusion=CONFUSION,
        train_confusion=CONFUSION,
        ece=None,
        lr=1e-4,
        duration_s=12.1,
        samples_per_s=812.3,
        skipped_steps=0,
        ram_peak=None,
        vram_peak=None,
        stale_epochs=stale,
        patience=patience,
        best=best,
    )


def best(previous_loss: float | None) -> BestFile:
    return BestFile("best-e0001-00.pth", "00", 1, previous_loss, {})


def clock() -> datetime:
    return datetime(2026, 11, 28, 8, 46, 26, tzinfo=UTC)


TIME = "[TIME] Epoch 1: 12.1 s, 812 samples/s, 2026-11-28 08:46:26 UTC"


def heading(device: str = "cpu", attempt: int = 1, **sections: Any) -> Heading:
    request = JobRequest.model_validate({"data": {"path": "btc"}, **sections}, strict=False)
    config = request.model_dump(mode="json")
    return Heading("01JOB", attempt, config, "saimp 1.2.0, torch 2.13.0", device)


def prepared(*, has_test: bool = False) -> Prepared:
    def part(windows: int, start: int, end: int) -> dict[str, Any]:
        return {
            "windows": windows,
            "start": f"2025-11-{start}T00:00:00Z",
            "end": f"2025-11-{end}T08:59:59.5Z",
        }

    splits = {
        "train": part(1942, 10, 20),
        "val": part(466, 20, 25),
        "test": part(7, 25, 26) if has_test else None,
    }
    plan = {"splits": splits, "model": {"parameters": 967876, "flops_per_sample": 1}}
    return Prepared({"fingerprint": "3f2a9c1b" + "0" * 56}, plan)


def headed(found: Heading, *events: Event) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, found, clock)
    log.begin()
    for event in events:
        log.write(event)
    return stream.getvalue().splitlines()


def written(*events: Event) -> list[str]:
    stream = io.StringIO()
    log = Log(stream, clock=clock)
    for event in events:
        log.write(event)
    return stream.getvalue().splitlines()


def test_an_epoch_reads_as_the_contract_says() -> None:
    gib = 2**30
    memory = {
        "ram_used": int(12.5 * gib),
        "ram_total": 32 * gib,
        "vram_used": int(7.6 * gib),
        "vram_total": 12 * gib,
    }
    assert written(
        EpochStarted(1, 15, 100), batch(0, **memory), epoch(1.295, best(1.31), 0), epoch(1.4, None, 1)
    ) == [
        "[EPOCH] Epoch 1/15",
        "   Batch    0 | Loss: 1.3800 | Acc: 33.33%",
        "   [RAM] 12.5 GB / 32.0 GB",
        "   [VRAM] 7.6 GB / 12.0 GB",
        "   [VAL] Loss: 1.2950 | Acc: 41.20% | macro-F1: 0.75",
        "   [SAVE] Val loss improved (1.3100 --> 1.2950)",
        TIME,
        "   [VAL] Loss: 1.4000 | Acc: 41.20% | macro-F1: 0.75",
        "   [EARLY STOP] 1 of 3",
        TIME,
    ]


def test_an_attempt_begins_with_its_job_its_data_and_its_model() -> None:
    found = heading(
        "cuda:0 NVIDIA GeForce RTX 3060",
        name="btc-lob-4c",
        optimizer={"lr": 3e-4},
        training={"epochs": 3},
    )
    assert headed(found, Warned("no_horizon", "why"), prepared(), EpochStarted(1, 3, 9)) == [
        '[JOB] 01JOB "btc-lob-4c" attempt 1 | 2026-11-28 08:46:26 UTC | saimp 1.2.0, torch 2.13.0'
        " | cuda:0 NVIDIA GeForce RTX 3060",
        "[DATA] btc | train 1942 windows 2025-11-10..2025-11-20 | val 466 windows 2025-11-20..2025-11-25"
        " | fingerprint 3f2a9c1b",
        "[MODEL] vivit | 967,876 parameters | optimizer.lr=0.0003 training.epochs=3",
        "[WARN] no_horizon: why",
        "[EPOCH] Epoch 1/3",
    ]


def test_a_resumed_attempt_begins_alike() -> None:
    resumed = Resumed("r", 2, 40, 9, False, 15, 99, None)
    assert headed(heading(attempt=2), prepared(has_test=True), resumed) == [
        "[JOB] 01JOB attempt 2 | 2026-11-28 08:46:26 UTC | saimp 1.2.0, torch 2.13.0 | cpu",
        "[DATA] btc | train 1942 windows 2025-11-10..2025-11-20 | val 466 windows 2025-11-20..2025-11-25"
        " | test 7 windows 2025-11-25..2025-11-26 | fingerprint 3f2a9c1b",
        "[MODEL] vivit | 967,876 parameters",
        "[RESUME] Epoch 2/15, batch 40, after step 9",
    ]


def test_every_field_that_is_not_by_default_is_named() -> None:
    found = heading(
        name="x",
        tags=["a b", "ü"],
        metadata={"desk": "fx"},
        data={
            "path": "btc",
            "features": ["a", "b"],
            "split": {"val_from": "2025-11-20T00:00:00Z"},
            "max_gap_s": 60,
        },
        model={"name": "custom", "target": "mine:Net", "params": {"text": "a\n\u202e"}},
        loss={"name": "focal", "class_weights": None},
        optimizer={"name": "sgd"},
        early_stopping=None,
        training={"epochs": 15, "deterministic": True},
    )
    assert headed(found, prepared())[2] == (
        '[MODEL] custom | 967,876 parameters | tags=["a b","ü"] metadata={"desk":"fx"}'
        ' data.features=["a","b"] data.max_gap_s=60.0 data.split.val_from="2025-11-20T00:00:00Z"'
        r' model.target="mine:Net" model.params={"text":"a\n\u202e"}'
        ' loss.name="focal" loss.class_weights=null optimizer.name="sgd"'
        " training.deterministic=true early_stopping.patience=null"
    )


def test_a_name_ends_no_line_and_no_quote() -> None:
    name = 'x" attempt 7 | \\ $`é漢'
    (line,) = headed(heading(name=name))
    assert line.startswith(r'[JOB] 01JOB "x\" attempt 7 | \\ $`é漢" attempt 1 | ')
    (warned,) = written(Warned("w", "a\n[END] succeeded (completed)\x1b[2J\u2028"))
    assert warned == r"[WARN] w: a\x0a[END] succeeded (completed)\x1b[2J\u2028"


def test_an_attempt_that_fails_before_it_has_data_says_what_it_was_warned_of() -> None:
    stream = io.StringIO()
    log = Log(stream, heading(), clock)
    log.begin()
    log.write(Warned("no_horizon", "why"))
    log.error("Row 7 holds NaN.")
    log.end()
    assert [line.split("]")[0] for line in stream.getvalue().splitlines()] == ["[JOB", "[WARN", "[ERROR"]


def test_the_first_save_comes_from_infinity() -> None:
    assert written(epoch(1.295, best(None), 0))[-2] == "   [SAVE] Val loss improved (inf --> 1.2950)"


def test_without_a_gpu_there_is_no_vram_line() -> None:
    assert [line.split("]")[0] for line in written(batch(12340, ram_used=2**30, ram_total=2**31))] == [
        "   Batch 12340 | Loss: 1.3800 | Acc: 33.33%",
        "   [RAM",
    ]


def test_the_rarer_lines() -> None:
    assert written(
        OomRecovered(1, 7, Rung(2, 64, True, False), "out of memory"),
        OomRecovered(1, 7, Rung(1, 64, False, True), "out of memory"),
        OomRecovered(1, 7, Rung(2, 32, True, False), "out of memory", "evaluation"),
        OomRecovered(1, 7, Rung(2, 64, True, False), "out of memory", "the optimizer step"),
        Tested(1.2, 0.5, CONFUSION),
        Warned("no_horizon", "why"),
    ) == [
        "[OOM] Step 7 again with micro-batches of 2: out of memory",
        "[OOM] Step 7 again with micro-batches of 1, rows encoded for each, recomputing: out of memory",
        "[OOM] Evaluation goes on with batches of 32: out of memory",
        "[OOM] Optimizer step 7 is cut off; the next attempt has micro-batches of 2: out of memory",
        "[TEST] Loss: 1.2000 | Acc: 50.00% | macro-F1: 0.75",
        "[WARN] no_horizon: why",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[END] failed (stalled)\n"),
        ("   Batch    0\n", "   Batch    0\n[END] failed (stalled)\n"),
        ("   Bat", "   Bat\n[END] failed (stalled)\n"),
    ],
)
def test_the_last_words_come_after_what_was_written_and_are_said_once(
    tmp_path: Path, before: str, after: str
) -> None:
    log = tmp_path / "log.txt"
    log.write_text(before)
    words = LastWords(log)
    words.say("queued", "backoff", "It hung for 300 seconds.")
    assert log.read_text().endswith("[ERROR] It hung for 300 seconds.\n[END] queued (backoff)\n")
    words.say("failed", "stalled")
    assert log.read_text() == after


def test_last_words_that_are_no_text_are_said_all_the_same(tmp_path: Path) -> None:
    (log := tmp_path / "log.txt").touch()
    LastWords(log).say("failed", "storage_error", "No such file: b\udce4r.parquet")
    assert log.read_text() == "[ERROR] No such file: b\\udce4r.parquet\n[END] failed (storage_error)\n"


def test_a_log_that_is_gone_gets_no_last_words(tmp_path: Path) -> None:
    LastWords(tmp_path / "log.txt").say("failed", "stalled")
    assert not (tmp_path / "log.txt").exists()
