"""What a field of a pydantic model accepts, in words for messages and tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel


def allowed_values(model: type[BaseModel], name: str) -> str:
    """What a field accepts, in words: ``"number > 0"``, ``"one of 'auto', 'cpu'"``."""
    schema = model.model_json_schema()
    return _in_words(schema["properties"][name], schema.get("$defs", {}))


def _in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _in_words(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if "anyOf" in schema:
        return " or ".join(_in_words(choice, definitions) for choice in schema["anyOf"])
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return "one of " + ", ".join(repr(choice) for choice in schema["enum"])
    if schema.get("type") == "array":
        return _array_in_words(schema, definitions)
    if isinstance(schema.get("additionalProperties"), dict):
        values = _in_words(schema["additionalProperties"], definitions)
        return f"mapping from names to ({values})"
    words = {"integer": "integer", "boolean": "True or False", "string": "text", "null": "None"}
    text = words.get(str(schema.get("type")), str(schema.get("type", "value")))
    return " and ".join([text, *_bounds(schema)]).replace(" and ", " ", 1)


def _bounds(schema: Mapping[str, Any]) -> list[str]:
    signs = {
        "exclusiveMinimum": ">",
        "minimum": ">=",
        "exclusiveMaximum": "<",
        "maximum": "<=",
        "multipleOf": "multiple of",
    }
    bounds = [f"{sign} {_exact(schema[key])}" for key, sign in signs.items() if key in schema]
    if "pattern" in schema:
        bounds.append(f"matching {schema['pattern']}")
    return bounds


def _array_in_words(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    text = f"list of ({_in_words(schema['items'], definitions)})"
    if schema.get("minItems"):
        text += f", at least {schema['minItems']}"
    if "maxItems" in schema:
        text += f", at most {schema['maxItems']}"
    return text


def _exact(number: float) -> int | float:
    """``1`` for ``1.0``; a bound such as 2**32 keeps all its digits."""
    return int(number) if float(number).is_integer() else number
