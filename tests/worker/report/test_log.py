"""The log's text, to the letter: contract, section 7."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from worker.engine.events import (
    BatchDone,
    BestFile,
    EpochDone,
    EpochStarted,
    Event,
    OomRecovered,
    Rung,
    Tested,
    Warned,
)
from worker.report.log import LastWords, Log

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
        duration_s=1.0,
        samples_per_s=1.0,
        skipped_steps=0,
        ram_peak=None,
        vram_peak=None,
        stale_epochs=stale,
        patience=patience,
        best=best,
    )


def best(previous_loss: float | None) -> BestFile:
    return BestFile("best-e0001-00.pth", "00", 1, previous_loss, {})


def written(*events: Event) -> list[str]:
    stream = io.StringIO()
    log = Log(stream)
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
        "   [VAL] Loss: 1.4000 | Acc: 41.20% | macro-F1: 0.75",
        "   [EARLY STOP] 1 of 3",
    ]


def test_the_first_save_comes_from_infinity() -> None:
    assert written(epoch(1.295, best(None), 0))[-1] == "   [SAVE] Val loss improved (inf --> 1.2950)"


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
