"""The trainer on a GPU beside the loop it replaces: samples/s, waits for the device, and memory.

    python -m bench.gpu [--turns 5]

Both train the default recipe in fp16 with GradScaler at micro-batch 3, accumulation 5. The seed-style loop
reads its loss and hits with `.item()` at every micro-batch and has its windows ready-made in pinned memory;
ours is the whole of `fit` with everything on. Goals: 5x the samples/s, no wait in a step, half the memory.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
import warnings
from collections.abc import Callable
from itertools import islice
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from bench.trainer import FOLDER, MICRO, STEPS, Rows, Service, make_run, request
from bench.trainer_loops import WEIGHTS, ByHand, adamw
from worker.engine.step import train_step

MICRO_BATCHES = 300
MIB = 2**20


def seed_style(net: nn.Module, pairs: list[Any], device: torch.device) -> None:
    """Train as it is first written: fp16 autocast, a scaler, and two reads of the device a micro-batch."""
    net.train()
    optimizer, scaler = adamw(net.parameters()), torch.amp.GradScaler(device.type)
    weights = torch.tensor(WEIGHTS, device=device)
    total = hits = 0.0
    for number, (windows, labels) in enumerate(pairs, 1):
        windows, labels = windows.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.float16):
            logits = net(windows)
            loss = F.cross_entropy(logits, labels, weight=weights) / STEPS
        scaler.scale(loss).backward()
        total += loss.item() * STEPS
        hits += (logits.argmax(-1) == labels).sum().item()
        if number % STEPS == 0:
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)


def compare(device: torch.device, turns: int) -> None:
    """Time both in turns, then look at waits and memory."""
    rows = Rows.random(MICRO * MICRO_BATCHES)
    pairs = [tuple(tensor.pin_memory() if device.type == "cuda" else tensor for tensor in pair)
             for pair in rows.pairs(MICRO)]  # fmt: skip
    net = ByHand(make_run(request(), rows).model).to(device)  # type: ignore[arg-type]
    jobs = {
        "ours, 3 x 5": request(device=str(device), precision="fp16"),
        "ours, auto": request("auto", device=str(device), precision="fp16"),
    }
    services = {name: Service(job, Rows.random(100_000)) for name, job in jobs.items()}
    for service in services.values():
        service.go(50)  # warm, and recorded
    works: dict[str, Callable[[], None]] = {"seed style": lambda: seed_style(net, pairs, device)}
    for name, service in services.items():
        count = MICRO * MICRO_BATCHES // service.run.micro_batch
        works[name] = lambda service=service, count=count: service.go(count)  # type: ignore[misc]
    speeds: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(turns + 1):
        for name, work in works.items():
            _finish(device)
            began = time.perf_counter()
            work()
            _finish(device)
            if turn:
                speeds[name].append(MICRO * MICRO_BATCHES / (time.perf_counter() - began))
    base = median(speeds["seed style"])
    for name, found in speeds.items():
        print(f"{name:14} {median(found):10,.0f} samples/s  {median(found) / base:5.2f}x")
    if device.type == "cuda":
        print(f"waits for the device in {STEPS} steps: {waits(device)} (goal 0)")
        for micro in (MICRO, 64):
            found = ", ".join(f"{name} {size:.1f}" for name, size in peaks(micro, device).items())
            print(f"most memory at a micro-batch of {micro}, MiB: {found}")


def waits(device: torch.device) -> int:
    """Count what torch itself calls a synchronisation, in steps that report nothing."""
    job = request(device=str(device), precision="fp16", training={"log_every": 10**6})
    run = make_run(job, Rows.random(MICRO * STEPS * 20))
    steps = run.splits.train.batches(MICRO * STEPS)
    for samples in islice(steps, 10):
        list(train_step(run, samples, 1))
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for samples in islice(steps, 5):
                list(train_step(run, samples, 1))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in heard)


def peaks(micro: int, device: torch.device) -> dict[str, float]:
    """Measure the most memory handed out to train a net made anew: weights, state and activations."""
    rows = Rows.random(micro * STEPS * 20)

    def by_hand() -> None:
        net = ByHand(make_run(request(), rows).model).to(device)  # type: ignore[arg-type]
        seed_style(net, rows.pairs(micro)[: STEPS * 10], device)

    def ours() -> None:
        run = make_run(request(micro, device=str(device), precision="fp16"), rows)
        for samples in run.splits.train.batches(micro * STEPS):
            list(train_step(run, samples, 1))

    found = {}
    for name, work in {"seed style": by_hand, "ours": ours}.items():
        gc.collect()
        _finish(device)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        found[name] = (torch.cuda.max_memory_allocated(device) - before) / MIB
    return found


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Read the options and compare. On `--device cpu` it only shows that the bench runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--device", default="cuda:0")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("There is no CUDA device here; nothing was measured.")
        return 1
    with FOLDER:
        compare(device, options.turns)
    return 0


if __name__ == "__main__":
    sys.exit(main())
