"""From host memory to the device, beside what it computes."""

from __future__ import annotations

import torch
from torch import Tensor


class Upload:
    """Brings host tensors to a device: through pinned memory, on a stream of its own.

    The host runs ahead of a GPU, so the rows of a step are on their way while the step before it is computed.
    Pinned blocks go round: torch keeps each until its copy is done, then hands it out again.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the tensor on the device, ready for the current stream; on a CPU it is there already."""
        if self._stream is None:
            return tensor
        pinned = tensor.pin_memory()  # from pageable memory, a copy of more than 64 KiB would wait
        current = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            there = pinned.to(self._device, non_blocking=True)
        current.wait_stream(self._stream)
        there.record_stream(current)  # else its memory is used anew once the host has forgotten it
        return there
