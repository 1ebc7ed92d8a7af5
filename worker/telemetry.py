"""Memory in bytes, load in percent: RAM (psutil, cgroup), VRAM (NVML), torch's peak. None without a GPU."""

from __future__ import annotations

import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pynvml

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class Ram:
    used: int
    total: int


@dataclass(frozen=True, slots=True)
class Vram:
    """The whole device, and one process on it (null when the driver does not say)."""

    used: int
    total: int
    process: int | None
    gpu_percent: float | None
    temperature: float | None


def ram(cgroup: Path = _CGROUP) -> Ram:
    """Measure the memory of the machine, or of the container when it has a limit of its own."""
    memory = psutil.virtual_memory()
    with suppress(OSError, ValueError, KeyError):
        limit = int((cgroup / "memory.max").read_text())  # "max" = no limit: ValueError
        if limit < memory.total:
            counts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
            # Files read long ago are given back at once when memory is wanted.
            return Ram(int((cgroup / "memory.current").read_text()) - int(counts["inactive_file"]), limit)
    return Ram(memory.total - memory.available, memory.total)


class Gpu:
    """One GPU through NVML. Every reading is null once the driver is missing or has died."""

    def __init__(self, index: int = 0) -> None:
        self._device: Any = None
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByIndex(index)

    @classmethod
    def of(cls, device: str | None) -> Gpu:
        """The GPU of a slot; without a device of its own the machine's first."""
        return cls(int(device.removeprefix("cuda:")) if device and device.startswith("cuda:") else 0)

    @property
    def name(self) -> str | None:
        """The product's name, or null without a GPU."""
        if self._device is None:
            return None
        with suppress(pynvml.NVMLError):
            name = pynvml.nvmlDeviceGetName(self._device)
            return name.decode() if isinstance(name, bytes) else str(name)
        return None

    def read(self, pid: int | None = None) -> Vram | None:
        """Measure the device, and what process `pid` holds of it."""
        if self._device is None:
            return None
        try:
            memory = pynvml.nvmlDeviceGetMemoryInfo(self._device)
        except pynvml.NVMLError:
            self._device = None  # a driver that died does not come back to this process
            return None
        return Vram(
            used=int(memory.used),
            total=int(memory.total),
            process=self._process(pid),
            gpu_percent=self._optional(lambda: float(pynvml.nvmlDeviceGetUtilizationRates(self._device).gpu)),
            temperature=self._optional(
                lambda: float(pynvml.nvmlDeviceGetTemperature(self._device, pynvml.NVML_TEMPERATURE_GPU))
            ),
        )

    def holders(self) -> dict[int, int]:
        """Tell which processes compute on the device, and how much of its memory each holds."""
        if self._device is None:
            return {}
        with suppress(pynvml.NVMLError):
            running = pynvml.nvmlDeviceGetComputeRunningProcesses(self._device)
            return {process.pid: int(process.usedGpuMemory or 0) for process in running}
        return {}

    def _process(self, pid: int | None) -> int | None:
        with suppress(pynvml.NVMLError):
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(self._device):
                if process.pid == pid and process.usedGpuMemory is not None:
                    return int(process.usedGpuMemory)
        return None

    @staticmethod
    def _optional(reading: Any) -> float | None:
        with suppress(pynvml.NVMLError):
            value: float = reading()
            return value
        return None


class Sampler:
    """Rows of the system series for one process; see `app.jobs.metrics.SYSTEM_COLUMNS`."""

    def __init__(self, pid: int, gpu: Gpu) -> None:
        self._pid = pid
        self._gpu = gpu
        self._process: psutil.Process | None = None
        with suppress(psutil.Error):
            self._process = psutil.Process(pid)
            self._process.cpu_percent()  # the first call only starts the clock

    def read(self) -> dict[str, int | float | None]:
        """Measure once; fields that cannot be had are null."""
        machine = ram()
        vram = self._gpu.read(self._pid)
        rss: int | None = None
        cpu_percent: float | None = None
        if self._process is not None:
            with suppress(psutil.Error):
                rss = self._process.memory_info().rss
                cpu_percent = self._process.cpu_percent()
        return {
            "ram_used": machine.used,
            "ram_total": machine.total,
            "process_rss": rss,
            "cpu_percent": cpu_percent,
            "vram_used": vram.used if vram else None,
            "vram_total": vram.total if vram else None,
            "vram_process": vram.process if vram else None,
            "gpu_percent": vram.gpu_percent if vram else None,
            "gpu_temperature": vram.temperature if vram else None,
        }


def torch_peak() -> int | None:
    """Read the most VRAM torch has held, in the process that trains; null before CUDA is used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return int(torch.cuda.max_memory_allocated())


def machine(gpu: Gpu) -> dict[str, Any]:
    """Describe the machine for GET /workers."""
    vram = gpu.read()
    return {
        "host": platform.node(),
        "cpu_count": psutil.cpu_count(),
        "ram_total": ram().total,
        "gpu": gpu.name,
        "vram_total": vram.total if vram else None,
        "has_8bit": find_spec("bitsandbytes") is not None,
    }
