"""Every JSON type and every bound's neighbours, at every place of a body: refused there, or kept as given.

The places come from the JSON schema of a job, every member of every union included, so a new field is tried
without a line here; only a required text that must look like something needs a sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from app.api.body import parse
from app.api.explain import read_job
from app.jobs.config import JobRequest
from tests.app.api.service import Service, service

JSON = {"content-type": "application/json"}

Schema = Mapping[str, Any]
DOCUMENT = JobRequest.model_json_schema()

# Of texts that must look like something.
SAMPLES = {
    "path": "demo",
    "target": "my_models:Net",
    "val_from": "1970-01-01T00:05:00Z",
    "depends_on": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
}
TYPES = ("null", "true", "0", "-1", "0.5", str(10**30), "1e400", '"1e400"', '""', '"x"', "[]", "[1]", "{}")
NESTED = ('{"a": 1}', '[[1, {"a": [null, 0.5]}], {}]', '{"name": {}}', '{"name": ["vivit"], "": [{}]}')
TIMES = (
    '"1893456000"',
    '"2025-11-01"',
    '"2025-11-01T00:00:00"',
    '"1970-01-01T00:05:00Z"',
    '"1970-01-01T14:05:00.000001+14:00"',
    '"1970-01-01T00:05:00.1234567Z"',
    '"0001-01-01T00:00:00Z"',
    '"0001-01-01T00:00:00+14:00"',
    '"9999-12-31T23:59:59Z"',
    '"9999-12-31T23:59:59-14:00"',
    '"2025-02-30T00:00:00Z"',
)


@dataclass(frozen=True)
class Spot:
    """A place of a body. schema: what is allowed there; around: the body with a hole for a value in it."""

    pointer: str
    name: str
    schema: Schema
    around: str

    def body(self, value: str) -> str:
        return self.around.replace('"HOLE"', value)


def spots(schema: Schema, pointer: str, name: str, around: str) -> Iterator[Spot]:
    """List a place and all below it."""
    yield Spot(pointer, name, schema, around)
    for member in members(schema):
        if "properties" in member:
            yield from _fields(member, pointer, around)
        elif isinstance(member.get("additionalProperties"), dict):
            inner = member["additionalProperties"]
            yield from spots(inner, f"{pointer}/k", name, _put(around, {"k": "HOLE"}))
        elif member.get("type") == "array":
            items = member.get("prefixItems") or [member["items"]] * max(1, member.get("minItems", 1))
            rest = [sample(item, name) for item in items[1:]]
            yield from spots(items[0], f"{pointer}/0", name, _put(around, ["HOLE", *rest]))


def _fields(section: Schema, pointer: str, around: str) -> Iterator[Spot]:
    for key, inner in section["properties"].items():
        needed = {name: sample(section["properties"][name], name) for name in section.get("required", ())}
        if "name" in section["properties"] and "const" in section["properties"]["name"]:
            needed["name"] = section["properties"]["name"]["const"]
        yield from spots(inner, f"{pointer}/{key}", key, _put(around, {**needed, key: "HOLE"}))


def _put(around: str, value: Any) -> str:
    return around.replace('"HOLE"', json.dumps(value))


def members(schema: Schema) -> Iterator[Schema]:
    """List what a schema stands for: references followed, a union's members one by one."""
    if "$ref" in schema:
        yield from members(DOCUMENT["$defs"][schema["$ref"].rpartition("/")[2]])
    elif "anyOf" in schema or "oneOf" in schema:
        for member in schema.get("anyOf") or schema["oneOf"]:
            yield from members(member)
    else:
        yield schema


def sample(schema: Schema, name: str) -> Any:
    """Make a value that a schema allows."""
    first = next(members(schema))
    if "default" in schema:
        return schema["default"]
    match first.get("type"):
        case "string" if "pattern" in first or "format" in first or name in SAMPLES:
            return SAMPLES[name]
        case "string":
            return "x" * max(1, first.get("minLength", 1))
        case "array":
            return [sample(first["items"], name)] * first.get("minItems", 0)
        case "object":
            return {key: sample(first["properties"][key], key) for key in first.get("required", ())}
        case _:
            return first.get("minimum", first.get("exclusiveMinimum", 0))


def neighbours(schema: Schema) -> Iterator[str]:
    """List values at the bounds of a schema, and right beyond."""
    for member in members(schema):
        for bound in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            if bound in member:
                edge = member[bound]
                step = 1 if member["type"] == "integer" else 0.0
                yield from (str(edge), *((str(edge - 1), str(edge + 1)) if step else ()))
                if not step:
                    yield from (repr(math.nextafter(edge, way)) for way in (-math.inf, math.inf))
        for bound, make in (("Length", lambda n: "x" * n), ("Items", lambda n: [1] * n)):
            for end in ("min", "max"):
                if (size := member.get(f"{end}{bound}")) is not None:
                    yield from (json.dumps(make(n)) for n in (size - 1, size, size + 1) if n >= 0)
        if member.get("maxProperties"):
            size = member["maxProperties"]
            yield from (json.dumps({f"k{i}": "v" for i in range(n)}) for n in (size, size + 1))
        for choice in (*member.get("enum", ()), *((member["const"],) if "const" in member else ())):
            yield json.dumps(choice)
        if member.get("format") == "date-time":
            yield from TIMES


SPOTS = {(spot.pointer, spot.around): spot for spot in spots(DOCUMENT, "", "", '"HOLE"')}
SECTIONS = sorted({spot.pointer.partition("/")[2].partition("/")[0] for spot in SPOTS.values()})


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with service(Path(tmp_path_factory.mktemp("service"))) as running:
        yield running


@pytest.mark.parametrize("section", SECTIONS)
def test_a_body_is_refused_at_the_place_or_holds_what_it_was_given(section: str) -> None:
    for spot in SPOTS.values():
        for value in values(spot) if section_of(spot) == section else ():
            body = spot.body(value)
            request, problems = read_job(*parse(body.encode()))
            if request is None:
                assert leads_to([problem.pointer for problem in problems], spot), (body, problems)
            else:
                check_kept(request.model_dump(mode="json"), spot, body)


@pytest.mark.parametrize("section", SECTIONS)
def test_a_job_is_queued_or_refused_by_name(api: Service, section: str) -> None:
    for spot, value, is_sound in sent(section):
        answer = api.client.post("/jobs", content=spot.body(value), headers=JSON)
        if answer.status_code == 201:
            check_kept(answer.json()["config"], spot, spot.body(value))
        else:
            check_refusal(answer, spot, value, is_sound)


def test_an_audit_is_made_or_refused_by_name(api: Service) -> None:
    for spot, value, is_sound in sent("data"):
        answer = api.client.post("/datasets/audit", content=spot.body(value), headers=JSON)
        if answer.status_code != 200:
            check_refusal(answer, spot, value, is_sound)


def sent(section: str) -> Iterator[tuple[Spot, str, bool]]:
    """Choose what goes over HTTP, with whether it is sound: a few of each place."""
    for number, spot in enumerate(SPOTS.values()):
        if section_of(spot) == section:
            judged = {value: read_job(*parse(spot.body(value).encode()))[0] for value in values(spot)}
            sound = [value for value, request in judged.items() if request is not None]
            faulty = [value for value, request in judged.items() if request is None]
            kept = sound if section in ("data", "not_before") else [*sound[:1], *sound[-1:]]
            yield from ((spot, value, True) for value in dict.fromkeys(kept))
            yield from ((spot, faulty[n % len(faulty)], False) for n in (number, number * 7 + 1) if faulty)


def values(spot: Spot) -> Iterator[str]:
    yield from dict.fromkeys((*TYPES, *NESTED, *neighbours(spot.schema)))


def section_of(spot: Spot) -> str:
    return spot.pointer.partition("/")[2].partition("/")[0]


def check_refusal(answer: Any, spot: Spot, value: str, is_sound: bool) -> None:
    """Check a refusal's pointers: they lead to a faulty place; a sound one the data may refuse anywhere."""
    assert answer.status_code == 422, (spot.body(value), answer.text)
    pointers = [error["pointer"] for error in answer.json()["errors"]]
    assert leads_to(pointers, spot) or (is_sound and any(pointers)), (spot.body(value), answer.text)


def leads_to(pointers: list[str], spot: Spot) -> bool:
    """Whether a pointer names the place, a part of it, or a section it is in."""
    place = f"{spot.pointer}/"
    return not spot.pointer or any(
        f"{pointer}/".startswith(place) or (pointer and place.startswith(f"{pointer}/"))
        for pointer in pointers
    )


def check_kept(config: Any, spot: Spot, body: str) -> None:
    assert is_kept(at(json.loads(body), spot.pointer), at(config, spot.pointer), spot), (body, config)


def at(value: Any, pointer: str) -> Any:
    for key in pointer.split("/")[1:]:
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def is_kept(given: Any, kept: Any, spot: Spot) -> bool:
    """Whether a config holds what was given: of the same type, an object with its defaults."""
    if spot.pointer == "/early_stopping" and given is None:
        return bool(kept["patience"] is None)  # off, as its text says
    if isinstance(given, dict):
        return isinstance(kept, dict) and all(
            is_kept(item, kept.get(key), spot) for key, item in given.items()
        )
    if isinstance(given, bool | None) or isinstance(kept, bool | None):
        return given is kept
    if any(member.get("format") == "date-time" for member in members(spot.schema)):
        return datetime.fromisoformat(given) == datetime.fromisoformat(kept)
    return bool(given == kept)
