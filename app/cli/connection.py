"""The client of a command: the URL and the token its settings name."""

from __future__ import annotations

from app.client import Client
from app.settings import load


def connect(*, patience_s: float = 1.0) -> Client:
    """Connect to SAIMP_URL. Raises SettingsError."""
    return Client.from_settings(load(), patience_s=patience_s)
