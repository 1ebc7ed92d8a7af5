"""What is wrong with a parameter of an address, in the words its own schema gives."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter

from app.api.explain import code_of
from app.errors import Problem, shown
from app.jobs.allowed import Schema, described, did_you_mean, either, flat

# (query, header or path) -> (the schema of its parameters, by name; what holds the definitions)
Parameters = Mapping[str, tuple[Mapping[str, Schema], Schema]]


def parameter_schemas(route: object) -> Parameters:
    """Describe the parameters of a route as JSON schemas."""
    if not isinstance(route, APIRoute):
        return {}
    found: dict[str, tuple[Mapping[str, Schema], Schema]] = {}
    needed = route.dependant
    for place, fields in (
        ("query", needed.query_params),
        ("header", needed.header_params),
        ("path", needed.path_params),
    ):
        for field in fields:
            annotation: Any = field.field_info.annotation
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                document = annotation.model_json_schema()
                found[place] = document["properties"], document
            else:
                document = TypeAdapter(Annotated[annotation, *field.field_info.metadata]).json_schema()
                known, _ = found.get(place, ({}, {}))
                found[place] = {**known, field.alias: document}, document
    return found


def parameter_problem(error: Mapping[str, Any], schemas: Parameters) -> Problem:
    """Turn an error of pydantic about a parameter into a problem."""
    place, *path = error["loc"]
    known, document = schemas.get(str(place), ({}, {}))
    if not path:  # a rule between parameters
        return Problem(f"/{place}", "invalid_value", str(error["msg"]).removeprefix("Value error, "))
    name, kind = str(path[0]), str(error["type"])
    pointer = f"/{place}/{shown(name)}"
    if kind == "extra_forbidden":
        hint = did_you_mean(name, sorted(known))
        return Problem(pointer, "unknown_parameter", "is no parameter of this address", hint)
    schema = known.get(name, {})
    if kind == "missing":
        return Problem(pointer, "missing", "is required", schema.get("description"))
    if kind in ("value_error", "assertion_error"):
        return Problem(pointer, code_of(kind), str(error["msg"]).partition(", ")[2])
    nodes = list(flat(schema, document))
    is_listed = any(node.get("type") == "array" for node in nodes)
    if is_listed:
        nodes = [one for node in nodes for one in flat(node.get("items", {}), document)]
    allowed = either(text for node in nodes for text in described(node) if text != "null")
    return Problem(
        pointer, code_of(kind), f"must {'list only' if is_listed else 'be'} {allowed}", _hint(schema, nodes)
    )


def _hint(schema: Schema, nodes: list[Schema]) -> str | None:
    return next(_hints(schema, nodes), None)


def _hints(schema: Schema, nodes: list[Schema]) -> Iterator[str]:
    if any(node.get("pattern") for node in nodes) and schema.get("description"):
        yield str(schema["description"])
    default = schema.get("default")
    if default is not None and default != [] and not isinstance(default, bool):
        yield f"The default is {json.dumps(default)}."
    if schema.get("description"):
        yield str(schema["description"])
