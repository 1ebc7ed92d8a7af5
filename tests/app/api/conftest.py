from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.app.api.service import Service, service


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Service]:
    with service(tmp_path) as running:
        yield running
