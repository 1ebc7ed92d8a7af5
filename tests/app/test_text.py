"""What strangers wrote, made safe to show."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.text import escaped


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_is_left_can_move_a_cursor_or_turn_text_around(text: str) -> None:
    shown = escaped(text)
    assert all(character.isprintable() or unicodedata.category(character) == "Zs" for character in shown)
    assert escaped(shown) == shown
    shown.encode()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Neutro | é 漢字 عربي 😀\u00a0\u3000", "Neutro | é 漢字 عربي 😀\u00a0\u3000"),
        ("\x1b[31m\0\x7f\x9b", r"\x1b[31m\x00\x7f\x9b"),
        ("a\nb\tc\r", r"a\x0ab\x09c\x0d"),
        ("\u202eabc\u2066\u200b\u2028\ufeff", r"\u202eabc\u2066\u200b\u2028\ufeff"),
        ("\U000e0041 \ud800", r"\U000e0041 \ud800"),
    ],
)
def test_what_cannot_be_seen_is_written_by_its_code(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_what_is_wanted_stays() -> None:
    assert escaped("a\n\tb\r", keep="\n\t") == "a\n\tb\\x0d"
