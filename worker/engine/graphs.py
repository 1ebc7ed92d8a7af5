"""CUDA graphs of a step's two halves: recorded once they have run a few times, then launched whole.

A small micro-batch is bound by its launches: some 150 kernels, each a few microseconds of the host's time for
less of the device's. A graph is one launch. What it reads and writes stays at fixed addresses: inputs are
copied in, gradients are added to buffers that are zeroed, never dropped.

Shapes: R rows, B samples of a micro-batch, T rows in a window, D embedding, K classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Work = Callable[..., Tensors]
Forward = Callable[[Tensor], Tensor]
Backward = Callable[[Tensor, Tensor], None]

# Uses of a shape before it is recorded: libraries choose kernels and allocate workspaces meanwhile.
WARM_UP = 3
# Shapes recorded at most: parts of dense windows have one or two, of sparse ones many.
MAX_RECORDED = 8


class CaptureFailed(Exception):
    """The work cannot be recorded; it runs as it is."""


class Recorder(Protocol):
    """Records work without doing it."""

    def __call__(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        """Return what repeats the work, and the tensors that each repetition fills."""
        ...


class CudaRecorder:
    """Records on the current device. Its recordings share memory: none may be repeated within another."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
        graph = torch.cuda.CUDAGraph()
        # thread_local: the stream and the checkpoint writer may pin and free memory meanwhile. The random
        # state is torch's own affair: each launch draws what the plain work would have drawn.
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            outputs = work()
        return graph.replay, outputs


class Graphs:
    """The recordings of one run. Off without a recorder, and once a recording has failed.

    make_recorder: makes one for each half, since one is repeated between another's forward and backward.
    """

    def __init__(self, make_recorder: Callable[[], Recorder] | None) -> None:
        self._make_recorder = make_recorder
        self.forget()

    @property
    def is_on(self) -> bool:
        """Whether gradients must stay where they are: zeroed, not dropped."""
        return self._make_recorder is not None

    def forget(self) -> None:
        """Drop every recording and the memory it holds; shapes are recorded anew when they come again."""
        self._uses: Counter[Hashable] = Counter()
        self._recorded: dict[Hashable, _Recording] = {}
        self._recorders: dict[str, Recorder] = {}

    def stop(self) -> None:
        """Go on without."""
        self._make_recorder = None
        self.forget()

    def classify(self, work: Work, *inputs: Tensor) -> Tensors:
        """Do `work(*inputs)`, or repeat it as recorded. The outputs stand until the next call."""
        key = ("head", *(tensor.shape for tensor in inputs))
        if not self._is_ready(key):
            self._uses[key] += 1
            return work(*inputs)
        if key not in self._recorded:
            self._recorded[key] = _Recording(self._recorder("head"), work, inputs)
        return self._recorded[key](*inputs)

    def encode(
        self, forward: Forward, backward: Backward, rows_RF: Tensor
    ) -> tuple[Tensor, Callable[[Tensor], None] | None]:
        """Encode rows: the embeddings [R, D], detached, and what walks back from their gradient [R, D]."""
        key = ("encode", rows_RF.shape)
        if not self._is_ready(key):
            embedded_RD = forward(rows_RF)
            if not embedded_RD.requires_grad:
                return embedded_RD.detach(), None  # nothing was computed with weights: nothing to gain
            self._uses[key] += 1
            return embedded_RD.detach(), partial(backward, embedded_RD)
        if key not in self._recorded:
            self._recorded[key] = _Encoding(self._recorder("encode"), forward, backward, rows_RF)
        encoding = self._recorded[key]
        (embedded_RD,) = encoding(rows_RF)
        assert isinstance(encoding, _Encoding)
        return embedded_RD, encoding.backward

    def _is_ready(self, key: Hashable) -> bool:
        if not self.is_on:
            return False
        return key in self._recorded or (self._uses[key] >= WARM_UP and len(self._recorded) < MAX_RECORDED)

    def _recorder(self, half: str) -> Recorder:
        assert self._make_recorder is not None
        if half not in self._recorders:
            self._recorders[half] = self._make_recorder()
        return self._recorders[half]


class _Recording:
    """Work on inputs that are copied to where it was recorded with them."""

    def __init__(self, recorder: Recorder, work: Work, inputs: Tensors) -> None:
        self._inputs = tuple(
            tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs
        )
        self._repeat, self._outputs = _record(recorder, lambda: work(*self._inputs))

    def __call__(self, *inputs: Tensor) -> Tensors:
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.detach().copy_(given.detach())
        self._repeat()
        return self._outputs


class _Encoding(_Recording):
    """A forward pass over rows, and the backward pass that belongs to it."""

    def __init__(self, recorder: Recorder, forward: Forward, backward: Backward, rows_RF: Tensor) -> None:
        self._embedded_RD: Tensor | None = None  # between the two

        def encode(rows_RF: Tensor) -> Tensors:
            self._embedded_RD = forward(rows_RF)
            return (self._embedded_RD.detach(),)

        def walk_back(gradient_RD: Tensor) -> Tensors:
            assert self._embedded_RD is not None
            backward(self._embedded_RD, gradient_RD)
            self._embedded_RD = None
            return ()

        super().__init__(recorder, encode, (rows_RF,))
        self._backward = _Recording(recorder, walk_back, self._outputs)

    def backward(self, gradient_RD: Tensor) -> None:
        """Walk back from the gradient of the embeddings."""
        self._backward(gradient_RD)


def _record(recorder: Recorder, work: Callable[[], Tensors]) -> tuple[Callable[[], None], Tensors]:
    """Record; out of memory is what it is everywhere, anything else is CaptureFailed."""
    try:
        return recorder(work)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        # Ending the capture fails too, and hides why.
        cause = error.__context__
        if isinstance(cause, torch.OutOfMemoryError):
            raise torch.OutOfMemoryError(str(cause)) from None
        raise CaptureFailed(str(cause or error)) from error
