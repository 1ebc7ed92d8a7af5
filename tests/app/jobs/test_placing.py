"""Files are put in place whole, and nothing is left beside them."""

from __future__ import annotations

from pathlib import Path

from app.jobs.placing import link


def test_a_link_made_again_leaves_no_draft(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_text("a")
    for _ in range(2):
        link(source, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source", "target"]
    assert target.samefile(source)
