"""`saimp config`: every field of a job, from the models that judge it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from app.cli.console import put
from app.jobs.allowed import Schema, described, did_you_mean, either, flat
from app.jobs.config import DEFAULT_NAMES, JobRequest

_COLUMNS = ("field", "default", "must be", "meaning")
_INTRODUCTION = """\
# The body of a job

Every field of `POST /jobs`, as `saimp config` prints it from the models that judge it. Only `data.path` is
required. A section that comes in kinds says which by its `name`, and is the default kind without one.
"""


def config(
    section: Annotated[
        str | None, typer.Argument(help="Only this section, e.g. training.", show_default=False)
    ] = None,
) -> None:
    """Print every field of a job with its default, bounds and meaning, as Markdown tables."""
    sections = dict(_sections())
    if section is None:
        put("\n".join((_INTRODUCTION, *(line for lines in sections.values() for line in lines))).rstrip())
    elif section in sections:
        put("\n".join(sections[section]).rstrip())
    else:
        raise typer.BadParameter(
            f"there is no section {section!r}. {did_you_mean(section, sorted(sections))}"
        )


def _sections() -> Iterator[tuple[str, list[str]]]:
    """List the sections in the order of the models, each as lines of Markdown."""
    document = JobRequest.model_json_schema()
    plain = {}
    for name, node in document["properties"].items():
        kinds = [kind for kind in flat(node, document) if "properties" in kind]
        if not kinds:
            plain[name] = node
        elif len(kinds) == 1:
            yield name, [f"## {name}", "", *_table(kinds[0], f"{name}.", document), ""]
        else:
            yield name, [f"## {name}", "", *_kinds(name, kinds, document)]
    yield "job", ["## job", "", *_table({"properties": plain, "required": []}, "", document), ""]


def _kinds(name: str, kinds: list[Schema], document: Schema) -> Iterator[str]:
    for kind in kinds:
        tag = kind["properties"]["name"]["const"]
        is_default = tag == DEFAULT_NAMES[name]
        words = [str(kind["description"])] if "description" in kind else []
        yield " ".join([f"**`{tag}`**{', the default' if is_default else ''}.", *words])
        yield ""
        yield from _table(kind, f"{name}.", document)
        yield ""


def _table(section: Schema, prefix: str, document: Schema) -> Iterator[str]:
    yield f"| {' | '.join(_COLUMNS)} |"
    yield f"|{' --- |' * len(_COLUMNS)}"
    for name, node in section["properties"].items():
        if "const" not in node:
            is_required = name in section.get("required", ())
            cells = (f"`{prefix}{name}`", _default(node, is_required), *_said(node, document))
            yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |"


def _default(node: Schema, is_required: bool) -> str:
    return "required" if is_required else f"`{json.dumps(node.get('default'))}`"


def _said(node: Schema, document: Schema) -> tuple[str, str]:
    members = [member for member in flat(node, document) if member.get("type") != "null"]
    if any("properties" in member for member in members):
        return either(_shape(member) for member in members), str(node.get("description", ""))
    allowed = either(text for member in members for text in described(member))
    return allowed, str(node.get("description", ""))


def _shape(node: Schema) -> str:
    """Name the keys of an object that is small enough to stand in a cell."""
    names: dict[str, Any] = node.get("properties", {})
    return "{" + ", ".join(f"`{name}`" for name in names) + "}"
