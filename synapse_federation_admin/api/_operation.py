# SPDX-License-Identifier: Apache-2.0
"""How a route is declared: what it takes in, what it gives out, how it fails.

A servlet has one `Operation` for each of its methods, under the method's name:

    class AuditServlet(AdminServlet):
        GET = Operation(AuditQuery, AuditPage)

        async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
            await self._services.homeserver.require_admin(request)
            query = self.GET.parse(request)
            ...
            return HTTPStatus.OK, AuditPage(entries=...).rendered()
"""

import re
from collections.abc import Mapping
from functools import cache
from typing import Any, Generic, TypeVar

import attr
from pydantic import ValidationError
from synapse.module_api import SynapseRequest, parse_json_object_from_request
from synapse.module_api.errors import SynapseError

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.api.schemas.model import Input, Model, Nothing
from synapse_federation_admin.failures.bounds import bounded

I = TypeVar("I", bound=Input)  # noqa: E741

# Query parameters that Synapse itself takes on every endpoint.
_SYNAPSES_OWN = frozenset({"access_token", "user_id"})

# Any number of 64 bits, and some beyond, which the models refuse.
_DIGITS = re.compile("[0-9]{1,19}")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Operation(Generic[I]):
    """A method of a route.

    Attributes:
        takes: The query parameters of a GET or DELETE, the JSON body of a POST or PUT.
        gives: The answer, 200; each line of it where it is a file of lines.
        gives_dry: The answer to a dry run; None: the same.
        errors: When it fails, by HTTP status, beside what every route answers.
        media_types: What the answer may be.
    """

    takes: type[I]
    gives: type[Model]
    gives_dry: type[Model] | None = None
    errors: Mapping[int, str] = attr.Factory(dict)
    media_types: tuple[str, ...] = ("application/json",)

    def parse(self, request: SynapseRequest) -> I:
        """Parse what a request brings.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`, naming the query parameter or the key
                that is wrong or not known; `M_NOT_JSON` or `M_BAD_JSON` for a body.
        """
        if request.method in (b"POST", b"PUT"):
            _parse_query(request, Nothing)
            values = parse_json_object_from_request(request, allow_empty_body=True)
            return _validate(self.takes, values, "Key", "key")
        return _parse_query(request, self.takes)


def _parse_query(request: SynapseRequest, model: type[I]) -> I:
    known = json_schema(model)["properties"]
    values: dict[str, object] = {}
    for key, given in (request.args or {}).items():
        name = key.decode("utf-8", "replace")
        if name in _SYNAPSES_OWN:
            continue
        field = known.get(name, {})
        try:
            texts = [text.decode("utf-8") for text in given]
        except UnicodeDecodeError:
            raise invalid_param(
                f"Query parameter '{bounded(name, 100)}' must be UTF-8"
            ) from None
        if field.get("type") == "array":
            values[name] = texts
        elif len(texts) > 1 and field:
            raise invalid_param(f"Query parameter '{name}' must be given only once")
        else:
            values[name] = _value(field, texts[0])
    return _validate(model, values, "Query parameter", "query parameter")


def _value(field: Mapping[str, Any], text: str) -> object:
    """Return the value of a query parameter; what has the wrong form stays a text."""
    # Only ASCII digits: int() also takes "1_000", "+7" and digits of other scripts.
    if field.get("type") == "integer" and _DIGITS.fullmatch(text):
        return int(text)
    if field.get("type") == "boolean":
        return {"true": True, "false": False}.get(text, text)
    return text


def _validate(model: type[I], values: Mapping[str, object], what: str, word: str) -> I:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refused(model, error, what, word) from None


def _refused(
    model: type[Model], error: ValidationError, what: str, word: str
) -> SynapseError:
    """Return the error for the first thing that is wrong."""
    found = error.errors(include_url=False)[0]
    path = [part for part in found["loc"] if isinstance(part, str)]
    schema = json_schema(model)
    is_unknown = found["type"] == "extra_forbidden"
    if found["type"] == "string_unicode" and "properties" in _at(schema, path):
        # Half of a surrogate pair in a key, which is none that is known.
        path.append(found["input"])
        is_unknown = True
    name = bounded(".".join(path), 100)
    if is_unknown:
        parent = _at(schema, path[:-1])
        prefix = "".join(f"{part}." for part in path[:-1])
        known = ", ".join(f"'{prefix}{key}'" for key in parent["properties"]) or "none"
        return invalid_param(f"Unknown {word} '{name}'; known are: {known}")
    if found["type"] == "value_error":
        text = str(found["ctx"]["error"])
    elif found["type"] == "missing":
        text = "is required"
    elif found["type"] == "string_unicode":
        text = "must be of whole characters only"
    else:
        is_item = word == "query parameter" and len(path) < len(found["loc"])
        field = _at(schema, path)
        text = f"must be {_expected(field['items'] if is_item else field, schema)}"
    return invalid_param(f"{what} '{name}' {text}" if path else text)


@cache
def json_schema(model: type[Model]) -> dict[str, Any]:
    """Return a model's JSON Schema."""
    return {"properties": {}, **model.model_json_schema()}


def _at(schema: Mapping[str, Any], path: list[str]) -> dict[str, Any]:
    """Return the schema of a key of an object, or of one in it."""
    found = dict(schema)
    for part in path:
        found = _resolved(found["properties"][part], schema)
    return found


def _resolved(field: dict[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    if "$ref" not in field:
        return field
    found: dict[str, Any] = schema["$defs"][field["$ref"].rpartition("/")[2]]
    return found


def _expected(field: dict[str, Any], schema: Mapping[str, Any]) -> str:
    """Return what a value must be, in words."""
    field = _resolved(field, schema)
    kind = field["type"]
    if "enum" in field:
        return "one of " + ", ".join(f"'{value}'" for value in field["enum"])
    if kind == "array":
        items = _resolved(field["items"], schema)
        some = f"at most {field['maxItems']} " if "maxItems" in field else ""
        if "enum" in items:
            return "a list of any of " + ", ".join(f"'{v}'" for v in items["enum"])
        return f"a list of {some}strings"
    if kind in ("integer", "number"):
        article = "an integer" if kind == "integer" else "a number"
        if "maximum" not in field:
            return article
        return f"{article} from {field['minimum']} to {field['maximum']}"
    if kind == "string":
        most = (
            f" of at most {field['maxLength']} characters"
            if "maxLength" in field
            else ""
        )
        return f"a string{most}{' without NUL' if 'pattern' in field else ''}"
    return {"boolean": "true or false", "object": "an object"}[kind]
