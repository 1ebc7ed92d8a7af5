"""How rows become embeddings and windows become logits in training: plainly, recomputed, or compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError
from torch.utils.checkpoint import checkpoint

from worker.models.base import SequenceModel
from worker.models.dropout import Masks

CompileFailed = (TorchDynamoException, InductorError)

# What torch.autograd.backward calls when it has checked shapes, which takes as long as a small pass.
_run_backward = getattr(torch.autograd.graph, "_engine_run_backward", None)


def backward(tensor: Tensor, gradient: Tensor) -> None:
    """Add the gradients of (tensor x gradient).sum() to the leaves behind it; both are of one shape."""
    if _run_backward is None:
        torch.autograd.backward(tensor, gradient)
    else:
        _run_backward((tensor,), (gradient,), False, False, (), allow_unreachable=True, accumulate_grad=True)


class Passes:
    """The two halves of a model's forward pass, `encode` and `head`.

    is_recomputing: activations of `encode`, and of each block of the head (the members of its module lists),
    are dropped and computed again in the backward pass (Chen et al. 2016, arXiv:1604.06174): the same bits,
    random draws included, for less memory and more time. It takes precedence over compiling.
    """

    def __init__(
        self, model: SequenceModel, masks: Masks | None, *, is_recomputing: bool, is_compiled: bool
    ) -> None:
        self.is_recomputing = is_recomputing
        self._model = model
        self._masks = masks
        self._encode: Callable[[Tensor], Tensor] | None = None
        self._head: Callable[[Tensor], Tensor] | None = None
        if is_compiled:
            # Dynamo looks at the gradients of its inputs, and windows have none of their own.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            self._encode = torch.compile(model.encode)
            # Masks are told what to drop between calls, which a compiled head would not see.
            self._head = torch.compile(model.head) if masks is None else None
        for block in _blocks(model):
            self._let_recompute(block)

    @property
    def is_compiled(self) -> bool:
        return self._encode is not None

    def encode(self, rows_RF: Tensor) -> Tensor:
        """Embed rows: [R, *shape] -> [R, D]."""
        if self.is_recomputing:
            # There is no dropout in it, so no random state to keep.
            embedded_RD: Tensor = checkpoint(
                self._model.encode, rows_RF, use_reentrant=False, preserve_rng_state=False
            )
            return embedded_RD
        return (self._encode or self._model.encode)(rows_RF)

    def head(self, embedded_BTD: Tensor) -> Tensor:
        """Classify windows: [B, T, D] -> logits [B, K]."""
        if self.is_recomputing:
            return self._model.head(embedded_BTD)
        return (self._head or self._model.head)(embedded_BTD)

    def stop_compiling(self) -> None:
        """Go on without what would not compile."""
        self._encode = self._head = None

    def _let_recompute(self, block: nn.Module) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if not self.is_recomputing or not torch.is_grad_enabled():
                return plain(*args, **kwargs)
            masks = self._masks
            layer = masks.layer if masks is not None else 0

            def again(*args: Any, **kwargs: Any) -> Any:
                if masks is not None:
                    masks.layer = layer
                return plain(*args, **kwargs)

            return checkpoint(again, *args, use_reentrant=False, preserve_rng_state=masks is None, **kwargs)

        block.forward = forward


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Find the members of the outermost module lists."""
    found: list[nn.Module] = []
    for child in module.children():
        found += list(child) if isinstance(child, nn.ModuleList) else _blocks(child)
    return found
