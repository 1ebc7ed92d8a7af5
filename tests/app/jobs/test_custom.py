from __future__ import annotations

import pytest

from app.jobs.config import CustomConfig, MlpConfig
from app.jobs.custom import custom_model_problems, is_allowed


@pytest.mark.parametrize(
    ("prefixes", "expected"),
    [
        ((), False),
        (("",), False),
        (("desk",), True),
        (("desk.models",), True),
        (("desk.",), True),
        (("other", " desk "), True),
        (("des",), False),
        (("desk.models.deep",), False),
        (("models",), False),
    ],
    ids=str,
)
def test_a_prefix_is_a_module_and_all_below_it(prefixes: tuple[str, ...], expected: bool) -> None:
    assert is_allowed("desk.models:Net", prefixes) is expected


def test_only_a_custom_model_that_is_not_allowed_is_a_problem() -> None:
    custom = CustomConfig(target="desk.models:Net")
    assert custom_model_problems(MlpConfig(), ()) == []
    assert custom_model_problems(custom, ("desk",)) == []
    (problem,) = custom_model_problems(custom, ("other",))
    assert (problem.pointer, problem.code) == ("/model/target", "custom_model_not_allowed")
    assert problem.hint is not None
    assert "other" in problem.hint
