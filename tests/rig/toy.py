"""A training without torch: a chain of hashes. One step lost, doubled or swapped changes all after it.

A job of EPOCHS x STEPS steps; its weights are a hash, its losses are read off it. A resume checkpoint is made
at every step, as the engine makes it: written aside, renamed, told; the best goes with it.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from tests.rig.witness import bear_witness
from worker.assignment import Assignment
from worker.engine.events import (
    BatchDone,
    BestFile,
    CheckpointSaved,
    Ended,
    EpochDone,
    EpochStarted,
    Event,
    PhaseChanged,
    Prepared,
    Resumed,
    encode,
)
from worker.entry import ORPHANED, PR_SET_PDEATHSIG, Orders
from worker.publish import write_sidecar
from worker.spawn import Runner

EPOCHS, STEPS = 3, 3
STEP_S = 0.002
_libc = ctypes.CDLL(None)


@dataclass
class Chain:
    """Where a training stands. `best` is the name, hash and loss of the best so far."""

    weights: str
    epoch: int = 1
    step: int = 0  # of the epoch, done
    best: tuple[str, str, float] | None = None

    def advance(self) -> float:
        """Take a step; return its loss."""
        self.weights = _hash(f"{self.weights} {self.epoch} {self.step}")
        self.step += 1
        return _loss(self.weights)

    def close(self) -> tuple[float, bytes | None]:
        """End the epoch; return its validation loss and, when it is the best, what to save."""
        loss = _loss(_hash(self.weights))
        content = self.weights.encode() if self.best is None or loss < self.best[2] else None
        if content is not None:
            sha256 = hashlib.sha256(content).hexdigest()
            self.best = (f"best-e{self.epoch:04d}-{sha256[:16]}.pth", sha256, loss)
        self.epoch, self.step = self.epoch + 1, 0
        return loss, content


@dataclass(frozen=True)
class Outcome:
    """What a job must come to."""

    losses: list[float]
    val_losses: list[float]
    bests: list[bool]
    best_sha256: str


def outcome(seed: int) -> Outcome:
    """Train without a disturbance."""
    chain = Chain(_hash(str(seed)))
    losses, val_losses, bests = [], [], []
    for _ in range(EPOCHS):
        losses += [chain.advance() for _ in range(STEPS)]
        val_loss, content = chain.close()
        val_losses.append(val_loss)
        bests.append(content is not None)
    assert chain.best is not None
    return Outcome(losses, val_losses, bests, chain.best[1])


class ToySpawner:
    """Forks runners from this process: what `worker.spawn.Spawner` does from its server."""

    def __init__(self, witness: Path) -> None:
        self._witness = witness
        self._context = multiprocessing.get_context("fork")

    def warm_up(self) -> None:
        pass

    def start(self, assignment: Assignment) -> Runner:
        ours, theirs = self._context.Pipe(duplex=True)
        process = self._context.Process(target=_enter, args=(assignment, theirs, os.getpid(), self._witness))
        process.start()
        theirs.close()
        return Runner(cast(Any, process), ours)


def _enter(assignment: Assignment, connection: Connection, supervisor_pid: int, witness: Path) -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        os._exit(ORPHANED)
    os.setsid()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    _let_go_of_what_is_the_supervisors(connection.fileno())
    bear_witness(witness, assignment.job_id, assignment.attempt)
    orders = Orders(connection)
    for event in _train(assignment, orders):
        connection.send_bytes(encode(event))
    os._exit(0)


def _let_go_of_what_is_the_supervisors(mine: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd != mine:
            with suppress(OSError):
                os.close(fd)


def _train(assignment: Assignment, orders: Orders) -> Iterator[Event]:
    folder = assignment.directory
    yield PhaseChanged("preparing")
    yield Prepared({"seed": assignment.config["training"]["seed"]}, {}, _key(assignment))
    chain = Chain(_hash(str(assignment.config["training"]["seed"])))
    if assignment.resume is not None:
        state = assignment.resume.path.read_bytes()
        assert hashlib.sha256(state).hexdigest() == assignment.resume.sha256
        chain = Chain(**json.loads(state))
        yield _resumed(chain, assignment.resume.path, folder)
    while chain.epoch <= EPOCHS:
        yield PhaseChanged("training")
        if chain.step == 0:
            yield EpochStarted(chain.epoch, EPOCHS, STEPS)
        while chain.step < STEPS:
            time.sleep(STEP_S)
            loss = chain.advance()
            number = (chain.epoch - 1) * STEPS + chain.step
            yield BatchDone(chain.epoch, chain.step - 1, number, loss, loss, loss, loss, time.time())
            yield _saved(chain, folder)
            if (order := _ordered(orders)) is not None:
                yield order
                return
        yield PhaseChanged("validating")
        epoch = chain.epoch
        val_loss, content = chain.close()
        best = _save_best(chain, folder, content) if content is not None else None
        yield _epoch_done(epoch, val_loss, best)
    yield Ended("completed", "Done.")


def _key(assignment: Assignment) -> str:
    return hashlib.sha256(str(assignment.config["data"]["embargo_s"]).encode()).hexdigest()


def _ordered(orders: Orders) -> Ended | None:
    """Look for an order; the checkpoint of this very place has been made."""
    if not orders._connection.poll():
        return None
    order = orders._connection.recv_bytes().decode()
    return Ended("preempted" if order == "preempt" else "user", "Stopped.", stopped=cast(Any, order))


def _resumed(chain: Chain, path: Path, folder: Path) -> Resumed:
    best = None
    if chain.best is not None:
        name, sha256, _ = chain.best
        with suppress(FileExistsError):
            os.link(path.parent / name, folder / name)
        best = _best_file(chain)
        write_sidecar(folder, best)
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256
    is_trained = chain.step == STEPS
    number = (chain.epoch - 1) * STEPS + chain.step
    return Resumed(path.name, chain.epoch, chain.step, number, is_trained, EPOCHS, STEPS, best)


def _saved(chain: Chain, folder: Path) -> CheckpointSaved:
    content = json.dumps(asdict(chain)).encode()
    sha256 = hashlib.sha256(content).hexdigest()
    number = (chain.epoch - 1) * STEPS + chain.step
    name = f"resume-s{number:08d}-{sha256[:16]}.pt"
    _write(folder / name, content)
    is_trained = chain.step == STEPS
    best = chain.best[0] if chain.best else None
    return CheckpointSaved(name, sha256, len(content), chain.epoch, chain.step, number, is_trained, best)


def _save_best(chain: Chain, folder: Path, content: bytes) -> BestFile:
    best = _best_file(chain)
    _write(folder / best.name, content)
    write_sidecar(folder, best)
    return best


def _best_file(chain: Chain) -> BestFile:
    assert chain.best is not None
    name, sha256, loss = chain.best
    sidecar = {"sha256": sha256, "metrics": {"val_loss": loss}}
    return BestFile(name, sha256, len(sha256), None, sidecar)


def _epoch_done(epoch: int, val_loss: float, best: BestFile | None) -> EpochDone:
    matrix = [[1, 0], [0, 1]]
    return EpochDone(
        epoch=epoch,
        train_loss=val_loss,
        train_accuracy=0.5,
        val_loss=val_loss,
        val_accuracy=0.5,
        confusion=matrix,
        train_confusion=matrix,
        ece=None,
        lr=val_loss,
        duration_s=0.0,
        samples_per_s=1.0,
        skipped_steps=0,
        ram_peak=None,
        vram_peak=None,
        stale_epochs=0,
        patience=None,
        best=best,
    )


def _write(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.tmp")
    draft.write_bytes(content)
    draft.replace(path)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _loss(weights: str) -> float:
    return int(weights[:8], 16) / 2**32
