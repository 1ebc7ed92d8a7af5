"""Numbers read from the device without making it wait."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """One number on its way to the host.

    Asked a step later, it has long arrived: `value` waits for the number's own computation, never for
    what was queued after it, as `.item()` would.
    """

    def __init__(self, number: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if number.is_cuda:
            self._host = torch.empty((), dtype=number.dtype, pin_memory=True)
            self._host.copy_(number, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record(torch.cuda.current_stream(number.device))
        else:
            self._host = number

    def value(self) -> float:
        """Return the number, once it is there."""
        if self._event is not None:
            self._event.synchronize()
        return float(self._host)
