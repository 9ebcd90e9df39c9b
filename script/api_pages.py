"""Pages of the site for docs/openapi.yaml and docs/asyncapi.yaml: each operation and message, with a table of its keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml


def pages(docs: Path) -> Mapping[str, str]:
    """Return the Markdown of each page, by its name."""
    http = yaml.safe_load((docs / "openapi.yaml").read_text(encoding="utf-8"))
    websocket = yaml.safe_load((docs / "asyncapi.yaml").read_text(encoding="utf-8"))
    return {"admin-api": "\n".join(_http(http)) + "\n", "websocket-api": "\n".join(_websocket(websocket)) + "\n"}


def _http(document: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# The HTTP ports", "", "From `docs/openapi.yaml` (OpenAPI 3.1).", "", document["info"]["description"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield from (f"## {method.upper()} {path}", "", operation["summary"], "")
            if "description" in operation:
                yield from (operation["description"], "")
            tags = operation.get("tags", [])
            ports = ["listen"] if "websocket" in tags else ["admin", *tags]
            yield from (f"Ports: {', '.join(f'`{port}`' for port in ports)}.", "")
            yield from _parameters(document, operation)
            for kind, body in operation.get("requestBody", {}).get("content", {}).items():
                yield from (f"Body `{kind}`: {_type(body['schema'])}. {body['schema'].get('description', '')}", "")
            yield from ("| status | body | meaning |", "| --- | --- | --- |")
            for status, found in operation["responses"].items():
                response = _found(document, found)
                bodies = ", ".join(f"`{kind}`: {_type(body['schema'])}" for kind, body in response.get("content", {}).items())
                yield f"| {status} | {bodies or 'none'} | {_cell(response['description'])} |"
            yield ""
    for name, schema in document["components"]["schemas"].items():
        yield from (f"## {name}", "", *_keys(document, schema))


def _parameters(document: Mapping[str, Any], operation: Mapping[str, Any]) -> Iterator[str]:
    found = [_found(document, parameter) for parameter in operation.get("parameters", [])]
    if not found:
        return
    yield from ("| parameter | in | type | meaning |", "| --- | --- | --- | --- |")
    for parameter in found:
        optional = "" if parameter.get("required") else "optional, "
        meaning = _cell(parameter["description"])
        yield f"| `{parameter['name']}` | {parameter['in']} | {optional}{_type(parameter['schema'])} | {meaning} |"
    yield ""


def _websocket(document: Mapping[str, Any]) -> Iterator[str]:
    yield from ("# The websocket", "", "From `docs/asyncapi.yaml` (AsyncAPI 3).", "", document["info"]["description"])
    for name, channel in document["channels"].items():
        yield from (f"## {channel['title']}", "", channel["description"], "")
        for operation in document["operations"].values():
            if operation["channel"]["$ref"] != f"#/channels/{name}":
                continue
            yield from (f"### {operation['title']}", "")
            for reference in operation["messages"]:
                key = reference["$ref"].rpartition("/")[2]
                message = _found(document, channel["messages"][key])
                yield from (f"#### {key} ({channel['title']})", "", message["summary"], "", *_keys(document, message["payload"]))
    yield from ("## Closing", "", "| code | reason | what the client does |", "| --- | --- | --- |")
    for close in document["channels"]["towerwsV1"]["x-close-codes"]:
        yield f"| {close['code']} | {close['reason']} | {close['action']} |"


def _found(document: Mapping[str, Any], part: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow a reference within the document."""
    if "$ref" not in part:
        return part
    found: Any = document
    for key in part["$ref"].removeprefix("#/").split("/"):
        found = found[key]
    return _found(document, found)


def _keys(document: Mapping[str, Any], schema: Mapping[str, Any]) -> Iterator[str]:
    """A table of an object's keys, for each of its alternatives."""
    if "description" in schema:
        yield from (_cell(schema["description"]), "")
    if "properties" not in schema:
        alternatives = schema.get("oneOf", [])
        for alternative in alternatives:
            yield from _keys(document, alternative)
        if not alternatives:
            yield from (f"{_type(schema)}.", "")
        return
    yield from ("| key | type | meaning |", "| --- | --- | --- |", *_rows(document, schema, ""), "")


def _rows(document: Mapping[str, Any], schema: Mapping[str, Any], path: str) -> Iterator[str]:
    """A row for each key, also for those of the objects inside: `markers.lag_s`."""
    for name, value in schema["properties"].items():
        meaning = value.get("description") or _found(document, value).get("description", "")
        optional = "" if name in schema.get("required", []) else "optional, "
        yield f"| `{path}{name}` | {optional}{_type(value)} | {_cell(meaning)} |"
        inner = value.get("items", value)
        if "properties" in inner:
            yield from _rows(document, inner, f"{path}{name}.")


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return f"{schema['$ref'].rpartition('/')[2]}"
    if schema.get("type") == "null":
        return "null"
    if "const" in schema:
        return f"`{str(schema['const']).lower() if isinstance(schema['const'], bool) else schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{'null' if word is None else word}`" for word in schema["enum"])
    if "oneOf" in schema and "type" not in schema:
        return " or ".join(_type(each) for each in schema["oneOf"])
    kinds = schema.get("type", "any value")
    text = " or ".join(kinds) if isinstance(kinds, list) else str(kinds)
    return f"{text} of {_type(schema['items'])}" if "items" in schema else text


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
