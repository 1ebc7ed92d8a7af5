"""What the fork server imports before it forks, and how it leaves. Never import this elsewhere."""

from __future__ import annotations

import atexit
import os

import worker.runner  # noqa: F401 - for its imports: torch above all

# It has nothing to put away, and torch takes seconds to unload: runners are killed when it is gone.
atexit.register(os._exit, 0)
