"""The trainer beside the loops people write and three peers: same net, same batches, one core, one run.

    python -m bench.trainer              # all of it, in turns; pins itself to one core
    python -m bench.trainer speed overhead

Sections: speed, validation, overhead, equality, memory, stall. Ours runs with everything on: `fit`, metric
rows, the log, telemetry, orders looked at, every event sent to another process, resume checkpoints. The
others train and do nothing else. Medians of the turns, and the best turn in brackets: other processes only
ever add time. `--clock cpu` counts this process's time alone, for a machine that is not free.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from subprocess import run as run_process
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from app.jobs.config import JobRequest
from bench.trainer_loops import LOOPS, WEIGHTS, ByHand, Clock, Loop, Pairs, adamw, bare
from worker.engine.evaluate import evaluate
from worker.engine.events import Event, Tick
from worker.engine.loop import fit
from worker.engine.resolve import resolve
from worker.engine.resume import state_of
from worker.engine.run import Run, build_run
from worker.engine.samples import Splits
from worker.engine.step import train_step
from worker.entry import Orders
from worker.models.base import SequenceModel
from worker.report.log import Log
from worker.runner import Outbox, _Memory
from worker.stream.batch import Batch

SHAPE = (4, 128)
MICRO, STEPS = 3, 5
EVERY_S = 300.0  # resume checkpoints, by default


@dataclass(frozen=True)
class Rows:
    """Consecutive windows over random rows in memory; labels are 85 / 7 / 6 / 2 %."""

    rows_RF: Tensor
    labels_N: Tensor
    window: int

    @classmethod
    def random(cls, count: int, *, window: int = 32, shape: tuple[int, ...] = SHAPE, seed: int = 0) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        chance_N = torch.rand(count, generator=generator)
        labels_N = torch.bucketize(chance_N, torch.tensor([0.85, 0.92, 0.98]))
        return cls(torch.randn(count + window - 1, *shape, generator=generator), labels_N, window)

    def __len__(self) -> int:
        return len(self.labels_N)

    def batches(self, size: int, *, skip: int = 0, epoch: int = 1) -> Generator[Batch, None, None]:
        starts_B = torch.arange(size)
        for first in range(skip, len(self), size):
            count = min(size, len(self) - first)
            rows_RF = self.rows_RF[first : first + count + self.window - 1]
            yield Batch(rows_RF, starts_B[:count], self.labels_N[first : first + count], self.window, True)

    def pairs(self, size: int) -> list[tuple[Tensor, Tensor]]:
        """Copy the windows out: whole batches only."""
        return [
            (batch.windows_BTF().clone(), batch.labels_B)
            for batch in self.batches(size)
            if len(batch) == size
        ]


def request(batch_size: int | str = MICRO, *, window: int = 32, **sections: Any) -> JobRequest:
    training = {"threads": 1, "batch_size": batch_size, "epochs": 10**5, **sections.pop("training", {})}
    body = {"data": {"path": "demo", "window": window}, "device": "cpu", "early_stopping": None}
    return JobRequest.model_validate({**body, **sections, "training": training}, strict=False)


def make_run(job: JobRequest, train: Rows, val: Rows | None = None, **extra: Any) -> Run:
    shape = tuple(train.rows_RF.shape[1:])
    val = val or Rows.random(1, window=train.window, shape=shape)
    return build_run(
        job,
        resolve(job, num_classes=4),
        shape=shape,
        num_classes=4,
        splits=Splits(train, val),
        directory=Path(tempfile.mkdtemp(dir=FOLDER.name)),
        **extra,
    )


class Service:
    """An attempt as the runner leads it: its events sent and logged, orders obeyed."""

    def __init__(self, job: JobRequest, train: Rows, model: SequenceModel | None = None) -> None:
        ours, theirs = multiprocessing.get_context("spawn").Pipe(duplex=True)
        self._drain = multiprocessing.get_context("spawn").Process(target=_drain, args=(theirs,), daemon=True)
        self._drain.start()
        self._outbox, self._orders = Outbox(ours.send_bytes), Orders(ours)
        self.run = make_run(job, train, memory=_Memory(job.device), model=model)
        self._log = Log(open(os.devnull, "w", buffering=1))  # noqa: SIM115
        self._events: Iterator[Event] = fit(self.run)

    def go(self, micro_batches: int) -> None:
        """Train on so many micro-batches."""
        while micro_batches:
            event = next(self._events)
            self._outbox.put(event)
            self._log.write(event)
            if self._orders.stop is not None:
                break
            micro_batches -= isinstance(event, Tick)


def _drain(connection: Any) -> None:
    # The supervisor's half, on another core when there is one.
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    try:
        while True:
            connection.recv_bytes()
    except (EOFError, OSError, KeyboardInterrupt):
        pass


Turn = Callable[[], float]  # takes one turn, returns its figure


def in_turns(works: dict[str, Turn], turns: int) -> dict[str, list[float]]:
    """Let all take turns; the first, which warms up, does not count."""
    found: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in list(works.items()):
            try:
                figure = work()
            except ImportError as error:
                print(f"  {name}: skipped, {error}")
                del works[name], found[name]
                continue
            if turn:
                found[name].append(figure)
    return found


def loop_turn(loop: Loop, net: nn.Module, pairs: list[Any], clock: Clock, warm_up: int = STEPS) -> Turn:
    def turn() -> float:
        fed = Pairs(pairs, warm_up, clock)
        loop(deepcopy(net), fed, STEPS, adamw)
        return fed.seconds / fed.num_timed

    return turn


def speed(options: argparse.Namespace) -> None:
    """Samples/s of training on the default recipe."""
    rows = Rows.random(MICRO * 20)
    net = ByHand(make_run(request(), rows).model)  # type: ignore[arg-type]
    works: dict[str, Turn] = {}
    for name, loop in LOOPS.items():
        seconds = loop_turn(loop, net, rows.pairs(MICRO), options.clock)
        works[name] = partial(lambda seconds: MICRO / seconds(), seconds)
    own = loop_turn(bare, make_run(request(), rows).model, rows.pairs(MICRO), options.clock)
    works["hand-written, our net's code"] = lambda: MICRO / own()
    many = Rows.random(100_000)
    for name, size in (("ours, 3 x 5", MICRO), ("ours, auto", "auto")):
        service = Service(request(size), many)
        samples = service.run.micro_batch
        service.go(20)
        works[name] = partial(_samples_per_s, service, samples, 150 // samples, options.clock)
    found = in_turns(works, options.turns)
    print("\nTraining, samples/s on the default recipe")
    _table(found, "{:9.1f}")
    peers = {name: figures for name, figures in found.items() if name in LOOPS and name != "seed style"}
    for name, goal in (("ours, 3 x 5", 2.5), ("ours, auto", 6.0)):
        for of, take in (("median", median), ("best", max)):
            best = max(peers, key=lambda peer: take(peers[peer]))
            _goal(f"{name} / {best}, {of} turns", take(found[name]) / take(peers[best]), ">=", goal, "x")


def _samples_per_s(service: Service, samples: int, micro_batches: int, clock: Clock) -> float:
    started = clock()
    service.go(micro_batches)
    return samples * micro_batches / (clock() - started)


def validation(options: argparse.Namespace) -> None:
    """Samples/s of evaluating a split in time order."""
    rows = Rows.random(256)
    run = make_run(request(), rows)
    net, pairs = ByHand(run.model).eval(), rows.pairs(64)  # type: ignore[arg-type]
    weights = torch.tensor(WEIGHTS)

    @torch.no_grad()
    def by_hand() -> float:
        started, loss, hits = options.clock(), torch.zeros(()), torch.zeros((), dtype=torch.long)
        for x, labels in pairs:
            logits = net(x)
            loss += F.cross_entropy(logits, labels, weight=weights)
            hits += (logits.argmax(-1) == labels).sum()
        assert loss.item() > 0
        return len(rows) / (options.clock() - started)

    def ours() -> float:
        started = options.clock()
        for _ in evaluate(run, rows, 1):
            pass
        return len(rows) / (options.clock() - started)

    found = in_turns({"hand-written, batch 64": by_hand, "ours": ours}, options.turns)
    print("\nValidation, samples/s")
    _table(found, "{:9.1f}")
    for of, take in (("median", median), ("best", max)):
        _goal(
            f"ours / hand, {of} turns",
            take(found["ours"]) / take(found["hand-written, batch 64"]),
            ">=",
            8,
            "x",
        )


class NoWork(SequenceModel):
    """Two small matrix products: what is left of a loop when there is next to nothing to compute."""

    def __init__(self, *, window: int, shape: tuple[int, ...], num_classes: int) -> None:
        super().__init__(window=window, shape=shape, num_classes=num_classes)
        self.project = nn.Linear(shape[0], 4)
        self.classifier = nn.Linear(4 * window, num_classes)

    def encode(self, rows_RF: Tensor) -> Tensor:
        embedded_RD: Tensor = self.project(rows_RF)
        return embedded_RD

    def head(self, embedded_BTD: Tensor) -> Tensor:
        logits_BK: Tensor = self.classifier(embedded_BTD.flatten(1))
        return logits_BK


def overhead(options: argparse.Namespace) -> None:
    """Microseconds a micro-batch costs over a bare loop, on a net without work."""
    for window in (4, 32):
        rows = Rows.random(MICRO * 150, window=window, shape=(8,))
        net = NoWork(window=window, shape=(8,), num_classes=4)
        works: dict[str, Turn] = {}
        pairs = rows.pairs(MICRO)
        for name, loop in {"bare": bare, **LOOPS}.items():
            works[name] = loop_turn(loop, net, pairs, options.clock, 30)
        service = Service(
            request(window=window), Rows.random(10**6, window=window, shape=(8,)), deepcopy(net)
        )
        service.go(100)
        works["ours"] = lambda service=service: _micro_s(service, 300, options.clock)  # type: ignore[misc]
        found = {
            name: [1e6 * second for second in seconds]
            for name, seconds in in_turns(works, 2 * options.turns).items()
        }
        print(f"\nOverhead at T = {window}, us per micro-batch of {MICRO}; over the bare loop")
        _table(found, "{:9.1f}", best=min)
        for of, take in (("median", median), ("best", min)):
            base = take(found["bare"])
            for name in found:
                if name not in ("bare", "ours"):
                    print(f"  {name}, {of} turns: {take(found[name]) - base:+.0f} us")
            _goal(f"ours, {of} turns", take(found["ours"]) - base, "<=", 40, " us")


def _micro_s(service: Service, micro_batches: int, clock: Clock) -> float:
    started = clock()
    service.go(micro_batches)
    return (clock() - started) / micro_batches


def equality(_: argparse.Namespace) -> None:
    """The gradient of a step against float64, under class weights; and the same weights from run to run."""
    model = {"name": "vivit", "d_model": 16, "heads": 2, "layers": 2, "dropout": 0.0}
    size, draws, shape = MICRO * STEPS, 30, (4, 16)
    rows = Rows.random(size * draws, window=8, shape=shape, seed=3)
    job = request(window=8, model=model)
    reference = make_run(job, rows, dtype=torch.float64)
    exact = list(_whole_gradients(ByHand(reference.model), rows, size))  # type: ignore[arg-type]
    single = make_run(job, rows)
    net = ByHand(single.model)  # type: ignore[arg-type]
    own = _errors(list(_whole_gradients(net, rows, size)), exact)
    print(f"\nGradient of a step of {MICRO} x {STEPS} against float64, {draws} draws of 85/7/6/2 labels")
    print(f"  {'the whole batch in float32':32} median {median(own):.1e}  largest {max(own):.1e}")
    for name, loop in LOOPS.items():
        kept: list[Tensor] = []
        try:
            loop(deepcopy(net), Pairs(rows.pairs(MICRO), 0), STEPS, partial(_Keeping, kept=kept))
        except ImportError as error:
            print(f"  {name}: skipped, {error}")
            continue
        errors = _errors(kept, exact)
        print(f"  {name:32} median {median(errors):.1%}  largest {max(errors):.1%}")
    # In our own net's order of weights: the reference anew.
    exact = list(_whole_gradients(reference.model, rows, size))
    own = _errors(list(_whole_gradients(single.model, rows, size)), exact)
    for cut in (MICRO, "auto", 1):
        training = {"accumulation_steps": 15} if cut == 1 else {}
        run = make_run(request(cut, window=8, model=model, training=training), rows)
        kept = []
        run.optimizer = _Keeping(run.parameters, kept=kept)
        for samples in rows.batches(size):
            for _tick in train_step(run, samples, 1):
                pass
        errors = _errors(kept, exact)
        print(f"  {f'ours, micro-batch {cut}':32} median {median(errors):.1e}  largest {max(errors):.1e}")
        _goal("median over float32's own", median(errors) / median(own), "<=", 2, "x")
        _goal("largest over float32's own", max(errors) / max(own), "<=", 2, "x")
    weights = []
    for _again in range(2):
        dropping = {**model, "dropout": 0.1}
        run = make_run(request(window=8, model=dropping, training={"epochs": 1}), rows)
        for _event in fit(run):
            pass
        weights.append(torch.cat([p.detach().flatten() for p in run.parameters]))
    same = "the same bits" if torch.equal(*weights) else "DIFFERENT"
    print(f"  -> weights from run to run: {same} (goal: the same bits)")


class _Keeping(torch.optim.Optimizer):
    """Keeps the gradient of every step, and changes nothing."""

    def __init__(self, parameters: Any, kept: list[Tensor]) -> None:
        super().__init__(parameters, {"lr": 0.0})
        self._kept = kept

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        if closure is not None:
            with torch.enable_grad():
                closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self._kept.append(torch.cat([g.double().flatten() for g in gradients if g is not None]))


def _whole_gradients(net: nn.Module, rows: Rows, size: int) -> Iterator[Tensor]:
    dtype = next(net.parameters()).dtype
    weights = torch.tensor(WEIGHTS, dtype=dtype)
    for x, labels in rows.pairs(size):
        net.zero_grad()
        F.cross_entropy(net(x.to(dtype)), labels, weight=weights).backward()
        yield torch.cat([p.grad.double().flatten() for p in net.parameters() if p.grad is not None])


def _errors(found: list[Tensor], exact: list[Tensor]) -> list[float]:
    pairs = zip(found, exact, strict=True)
    return [float((mine - true).norm() / true.norm()) for mine, true in pairs]


def memory(_: argparse.Namespace) -> None:
    """Peak memory of training at the same micro-batch, each in a process of its own."""
    print("\nPeak memory at a micro-batch of 3, MiB: all of it, and above imports and data")
    grown: dict[str, float] = {}
    for name in ("hand-written", *(n for n in LOOPS if n not in ("hand-written", "seed style")), "ours"):
        command = [sys.executable, "-m", "bench.trainer", "--peak", name]
        done = run_process(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"  {name}: skipped, {(done.stderr.strip().splitlines() or ['?'])[-1]}")
            continue
        peak, base = (float(word) for word in done.stdout.split()[-2:])
        grown[name] = peak - base
        print(f"  {name:32} {peak:8.1f} {peak - base:8.1f}")
    _goal(
        "ours / hand-written, above imports and data", grown["ours"] / grown["hand-written"], "<=", 0.6, "x"
    )


def print_peak(name: str) -> None:
    """Train in this process; print the most memory it held, and held before."""
    rows = Rows.random(MICRO * STEPS * 8)
    if name == "ours":
        training = {"epochs": 1}
        base = _high_water()
        for _event in fit(make_run(request(training=training), rows)):
            pass
    else:
        pairs = rows.pairs(MICRO)
        base = _high_water()
        LOOPS[name](ByHand(make_run(request(), rows).model), Pairs(pairs, 1), STEPS, adamw)  # type: ignore[arg-type]
    print(_high_water(), base)


def _high_water() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def stall(options: argparse.Namespace) -> None:
    """What a resume checkpoint at the default interval takes from training."""
    rows = Rows.random(100_000)
    service = Service(request(checkpoint={"every_s": None}), rows)
    service.go(50)
    run = service.run
    copies, whole = [], []
    epoch = service._events.gi_frame.f_locals["epoch"]  # type: ignore[attr-defined]
    for _ in range(options.turns):
        started = options.clock()
        state_of(run, epoch)
        copies.append(options.clock() - started)
        before = _micro_s(service, 10 * STEPS, options.clock)
        run.request_checkpoint()  # asked for, it is waited for: the writer's own time is in it
        after = _micro_s(service, 10 * STEPS, options.clock)
        whole.append(10 * STEPS * (after - before))
    print(f"\nResume checkpoint of the default recipe, every {EVERY_S:.0f} s")
    print(f"  copied: {1e3 * median(copies):.1f} ms; and written: {1e3 * median(whole):.1f} ms")
    _goal("share of the training thread's time", 100 * median(copies) / EVERY_S, "<=", 1, " %")
    _goal("if it waited for the disk as well", 100 * median(whole) / EVERY_S, "<=", 1, " %")


def _table(found: dict[str, list[float]], form: str, best: Callable[[list[float]], float] = max) -> None:
    for name, figures in found.items():
        print(f"  {name:32} {form.format(median(figures))}  ({form.format(best(figures)).strip()})")


def _goal(what: str, figure: float, sign: str, goal: float, unit: str) -> None:
    is_met = figure >= goal if sign == ">=" else figure <= goal
    verdict = "met" if is_met else "MISSED"
    print(f"  -> {what}: {figure:.3g}{unit} (goal {sign} {goal:g}{unit}: {verdict})")


SECTIONS = {f.__name__: f for f in (speed, validation, overhead, equality, memory, stall)}
FOLDER = tempfile.TemporaryDirectory()


def main() -> None:
    """Run the sections asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[*SECTIONS, []], help="all, when none is named")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.clock = time.perf_counter if options.clock == "wall" else time.process_time
    os.sched_setaffinity(0, {options.core})
    torch.set_num_threads(1)
    if options.peak:
        return print_peak(options.peak)
    print(
        f"torch {torch.__version__}, one thread, core {options.core}; median of {options.turns} turns (best)"
    )
    for name in options.sections or SECTIONS:
        SECTIONS[name](options)
        sys.stdout.flush()
    return None


if __name__ == "__main__":
    main()
