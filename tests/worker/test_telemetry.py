"""Telemetry, with a stand-in for the driver: there is no GPU where the tests run."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from worker.telemetry import Gpu, Sampler, ram


class Driver:
    """NVML as `pynvml` shows it; `fail` makes every call raise."""

    def __init__(self) -> None:
        self.fail = False

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda index: index,
            "nvmlDeviceGetName": lambda handle: "NVIDIA GeForce RTX 3060",
            "nvmlDeviceGetMemoryInfo": lambda handle: SimpleNamespace(used=7 * 2**30, total=12 * 2**30),
            "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=93),
            "nvmlDeviceGetTemperature": lambda handle, sensor: 71,
            "nvmlDeviceGetComputeRunningProcesses": lambda handle: [
                SimpleNamespace(pid=1, usedGpuMemory=None),
                SimpleNamespace(pid=os.getpid(), usedGpuMemory=6 * 2**30),
            ],
        }
        for name, answer in answers.items():
            monkeypatch.setattr(pynvml, name, self._failing(answer))

    def _failing(self, answer: Any) -> Any:
        def call(*arguments: Any) -> Any:
            if self.fail:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
            return answer(*arguments)

        return call


def test_without_a_driver_the_gpu_is_null_and_the_ram_is_not() -> None:
    sample = Sampler(os.getpid(), Gpu()).read()
    assert sample["vram_used"] is None
    assert 0 < sample["process_rss"] < sample["ram_used"] < sample["ram_total"]  # type: ignore[operator]


def test_the_device_and_the_process_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    Driver().install(monkeypatch)
    sample = Sampler(os.getpid(), Gpu()).read()
    assert (sample["vram_used"], sample["vram_total"], sample["vram_process"]) == (
        7 * 2**30,
        12 * 2**30,
        6 * 2**30,
    )
    assert (sample["gpu_percent"], sample["gpu_temperature"]) == (93.0, 71.0)


def test_a_driver_that_dies_in_mid_run_leaves_nulls(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Driver()
    driver.install(monkeypatch)
    sampler = Sampler(os.getpid(), Gpu())
    assert sampler.read()["vram_used"] is not None
    driver.fail = True
    sample = sampler.read()
    assert sample["vram_used"] is sample["gpu_percent"] is None
    assert sample["process_rss"] is not None


def test_a_container_is_measured_by_its_own_limit(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1048576\n")
    (tmp_path / "memory.current").write_text("8192\n")
    (tmp_path / "memory.stat").write_text("anon 4096\ninactive_file 4096\n")
    assert (ram(tmp_path).used, ram(tmp_path).total) == (4096, 2**20), "the page cache is not used memory"
    (tmp_path / "memory.max").write_text("max\n")
    assert ram(tmp_path).total > 2**20


def test_a_process_that_is_gone_leaves_nulls() -> None:
    assert Sampler(2**22 + 1, Gpu()).read()["process_rss"] is None
