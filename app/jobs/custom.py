"""Who may bring models of their own: the operator names module prefixes, all others are refused."""

from __future__ import annotations

from collections.abc import Sequence

from app.errors import Problem, shown
from app.jobs.config import CustomConfig, ModelConfig


def is_allowed(target: str, allowed_prefixes: Sequence[str]) -> bool:
    """Whether the module of `target` (module:Class) is one of the prefixes or below one."""
    module = target.partition(":")[0]
    bare = [prefix.strip().rstrip(".") for prefix in allowed_prefixes]
    return any(module == prefix or module.startswith(f"{prefix}.") for prefix in bare if prefix)


def custom_model_problems(model: ModelConfig, allowed_prefixes: Sequence[str]) -> list[Problem]:
    """Say what is wrong with asking for this model: nothing, but for a custom one that is not allowed."""
    if not isinstance(model, CustomConfig) or is_allowed(model.target, allowed_prefixes):
        return []
    listed = ", ".join(shown(prefix) for prefix in allowed_prefixes) or "none"
    return [
        Problem(
            "/model/target",
            "custom_model_not_allowed",
            f"{shown(model.target)!r} is not a model this service may import",
            f"Allowed by SAIMP_CUSTOM_MODELS: {listed}.",
        )
    ]
