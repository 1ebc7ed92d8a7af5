"""Arming failpoints from a test: `app.failpoints` says what they are."""

from __future__ import annotations

from pathlib import Path

from app.failpoints import POINTS, VARIABLE


class Failpoints:
    """The folder of failpoints that the processes of a test look into."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """What a process must be started with, to reach these points; what it starts inherits it."""
        return {VARIABLE: str(self.folder)}

    def arm(self, name: str, action: str, nth: int = 1) -> None:
        """Plan an action for the nth time that any process reaches a point."""
        assert name in POINTS, name
        draft = self.folder / f".{name}"
        draft.write_text(f"{action} {nth}")
        draft.replace(self.folder / name)

    def disarm(self, name: str) -> bool:
        """Take the plan back; return whether it had not come to pass yet."""
        was_armed = self.is_armed(name)
        (self.folder / name).unlink(missing_ok=True)
        return was_armed

    def is_armed(self, name: str) -> bool:
        """Whether the point has not been reached, or not often enough."""
        return (self.folder / name).exists()

    def armed(self) -> set[str]:
        """The points that have still to be reached."""
        return {path.name for path in self.folder.iterdir() if path.name in POINTS}
