"""Settings from the environment (SAIMP_*) and .env, read once at start. Unknown SAIMP_* names are refused."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.datasets.places import Sources, s3_root

PREFIX = "SAIMP_"
_UNITS = {"": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9}


class SettingsError(Exception):
    """A setting is unknown or out of range; the message names it and the remedy."""


def _bytes(value: Any) -> Any:
    match = re.fullmatch(r"\s*(\d+)\s*([a-zA-Z]*)\s*", str(value))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("must be a number of bytes such as 536870912, 512MiB or 2GiB")
    return int(match[1]) * _UNITS[match[2].lower()]


def _s3_roots(text: str) -> str:
    for url in _listed(text):
        s3_root(url)
    return text


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _devices(value: str) -> str:
    names = _listed(value)
    are_devices = all(re.fullmatch(r"(cuda|cpu):(0|[1-9]\d{0,2})", name) for name in names)
    if not are_devices or len(set(names)) < len(names):
        raise ValueError("must be different devices, separated by commas, such as cuda:0,cuda:1")
    return value


class Settings(BaseSettings):
    """What the operator chooses. Each field is the setting SAIMP_<NAME>."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_file=".env", extra="ignore", frozen=True, use_attribute_docstrings=True
    )

    data_root: Path = Path("data")
    """The data root: datasets, jobs, database, champion."""
    logs_root: Path = Path("logs")
    """Training logs and plots."""
    database_url: str = ""
    """Empty = sqlite:///<data root>/saimp.db; or postgresql+psycopg://..."""
    host: str = "127.0.0.1"
    """Where the API listens."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 = any free port."""
    auth: Literal["token", "off"] = "token"
    """Accepted and not yet enforced."""
    token: str = ""
    """Token clients send; empty = the file <data root>/.token when it exists."""
    url: str = "http://127.0.0.1:8000"
    """Where the CLI and the client look for the API."""
    stream_budget: Annotated[int, BeforeValidator(_bytes), Field(ge=2**20)] = 512 * 2**20
    """Memory of the stream."""
    preflight_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    """Time limit of the data checks at submit, in seconds."""
    vram_fraction: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of the GPU's memory a job may take."""
    s3_roots: Annotated[str, AfterValidator(_s3_roots)] = ""
    """s3://bucket/prefix URLs that data.path may name, and what is below them, separated by commas."""
    devices: Annotated[str, AfterValidator(_devices)] = ""
    """One slot each, separated by commas, such as cuda:0,cuda:1; empty = one slot for the whole machine."""
    custom_models: str = ""
    """Allowed module prefixes of custom models, separated by commas; empty = none."""

    @property
    def custom_prefixes(self) -> tuple[str, ...]:
        """The modules that custom models may come from."""
        return _listed(self.custom_models)

    @property
    def sources(self) -> Sources:
        """Where data.path may lead."""
        return Sources(self.data_root, tuple(s3_root(url) for url in _listed(self.s3_roots)))

    @property
    def slots(self) -> tuple[str | None, ...]:
        """The device of each slot; one slot without a name = the whole machine."""
        return _listed(self.devices) or (None,)

    @property
    def database(self) -> str:
        """The SQLAlchemy URL of the database."""
        return self.database_url or f"sqlite:///{self.data_root.absolute() / 'saimp.db'}"


def load(**overrides: Any) -> Settings:
    """Read the settings; an override that is None leaves the environment's value.

    Raises SettingsError naming every unknown or invalid setting.
    """
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in sorted({*os.environ, *_env_file_names()} - known):
        if name.startswith(PREFIX):
            close = difflib.get_close_matches(name, known, n=1)
            remedy = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
            raise SettingsError(f"unknown setting {name}: {remedy}")
    try:
        return Settings(**{key: value for key, value in overrides.items() if value is not None})
    except ValidationError as error:
        lines = [f"{PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" for e in error.errors()]
        raise SettingsError("; ".join(lines)) from error


def _env_file_names() -> set[str]:
    path = Path(".env")
    if not path.is_file():
        return set()
    return set(re.findall(r"^\s*(?:export\s+)?(\w+)\s*=", path.read_text(encoding="utf-8"), re.MULTILINE))
