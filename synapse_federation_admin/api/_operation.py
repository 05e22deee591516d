# SPDX-License-Identifier: Apache-2.0
"""How a route of v2 is declared: what it takes in, what it gives out, how it fails.

    @operation(AuditQuery, AuditPage)
    async def read_audit(asked: Asked, query: AuditQuery) -> JsonDict:
        ...

The docstring of the function is the contract; its first line is in the document, too.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from http import HTTPStatus
from typing import Any, Generic, TypeVar

import attr
from pydantic import ValidationError
from synapse.module_api import JsonDict, SynapseRequest, parse_json_object_from_request
from synapse.module_api.errors import Codes, SynapseError

from synapse_federation_admin import limits
from synapse_federation_admin.api._base import Asked, invalid_param
from synapse_federation_admin.api.schemas.model import Answer, Input, Model, Nothing
from synapse_federation_admin.failures.bounds import bounded

I = TypeVar("I", bound=Input)  # noqa: E741

Handler = Callable[..., Awaitable[JsonDict | None]]

# Query parameters that Synapse itself takes on every endpoint.
_SYNAPSES_OWN = frozenset({"access_token", "user_id"})

# Any number of 64 bits, and some beyond, which the models refuse.
_DIGITS = re.compile("[0-9]{1,19}")


@attr.s(slots=True, frozen=True, auto_attribs=True, eq=False)
class Operation(Generic[I]):
    """A method of a route.

    Attributes:
        takes: The query parameters of a GET or DELETE, the JSON body of a POST.
        gives: The answer, 200, a model or a class of values; each line of it where it
            is a file of lines.
        gives_dry: The answer to a dry run; None: the same.
        body_bytes: How long its JSON body may be.
        errors: When it fails, by HTTP status, beside what every route answers.
        media_types: What the answer may be.
        handler: Answers, by what the request brings; None: v1, which needs no models.
    """

    takes: type[I]
    gives: Any
    gives_dry: type[Answer] | None = None
    errors: Mapping[int, str] = attr.Factory(dict)
    body_bytes: int = limits.BODY_BYTES
    media_types: tuple[str, ...] = ("application/json",)
    handler: Handler | None = None

    async def __call__(self, asked: Asked, **parameters: str) -> JsonDict | None:
        """Answer a request.

        Raises:
            SynapseError: 400 `M_INVALID_PARAM`, naming the query parameter or the key
                that is wrong or not known; `M_NOT_JSON` or `M_BAD_JSON` for a body,
                413 `M_TOO_LARGE` for a long one; or what the handler raises.
        """
        assert self.handler is not None
        return await self.handler(asked, self._parse(asked.request), **parameters)

    def take(self, values: Mapping[str, object]) -> I:
        """Return what the handler takes.

        Args:
            values: The query parameters, as texts or values, or the keys of the body;
                what is "" or None is as if it were not there.

        Raises:
            SynapseError: 400, as the API answers.
        """
        given = {name: v for name, v in values.items() if v not in ("", None)}
        return _validate(self.takes, _typed(self.takes, given), "parameter")

    def _parse(self, request: SynapseRequest) -> I:
        if request.method != b"POST":
            return _parse_query(request, self.takes)
        _parse_query(request, Nothing)
        self._check_size(request)
        values = parse_json_object_from_request(request, allow_empty_body=True)
        return _validate(self.takes, values, "key")

    def _check_size(self, request: SynapseRequest) -> None:
        """Look how large the body is before it is parsed, which holds everybody up."""
        assert request.content is not None
        body = request.content.read(self.body_bytes + 1)
        request.content.seek(0)
        if len(body) > self.body_bytes:
            problem = f"at most {self.body_bytes} bytes are taken"
        elif _parts(body) > limits.BODY_PARTS:
            problem = f"at most {limits.BODY_PARTS} objects, lists and keys are taken"
        else:
            return
        raise SynapseError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"Body too large: {problem}",
            Codes.TOO_LARGE,
        )


def _parts(body: bytes) -> int:
    """Return about how many objects, lists and keys there are in JSON.

    Each of them takes as long to parse, and to refuse, as many names in one list.
    """
    dense = body.translate(None, b" \t\r\n")
    return sum(map(dense.count, (b'":', b",[", b"[[", b",{", b"[{")))


def operation(
    takes: type[I], gives: Any, **more: Any
) -> Callable[[Handler], Operation[I]]:
    """Make an operation of a handler; see `Operation`."""
    return lambda handler: Operation(takes, gives, handler=handler, **more)


def _parse_query(request: SynapseRequest, model: type[I]) -> I:
    known = json_schema(model)["properties"]
    texts_of: dict[str, object] = {}
    # Twisted counts the fields of a form among them.
    args = request.args or {}
    if len(args) > limits.QUERY_PARAMETERS:
        raise invalid_param(
            f"Query parameters: at most {limits.QUERY_PARAMETERS} are taken"
        )
    for key, given in args.items():
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
        is_list = field.get("type") == "array"
        if len(texts) > 1 and field and not is_list:
            raise invalid_param(f"Query parameter '{name}' must be given only once")
        texts_of[name] = texts if is_list else texts[0]
    return _validate(model, _typed(model, texts_of), "query parameter")


def _typed(model: type[Model], values: Mapping[str, object]) -> dict[str, object]:
    """Return values of which those that are texts have the types of a model."""
    known = json_schema(model)["properties"]
    return {
        name: _value(known.get(name, {}), value) if isinstance(value, str) else value
        for name, value in values.items()
    }


def _value(field: Mapping[str, Any], text: str) -> object:
    """Return the value of a query parameter; what has the wrong form stays a text."""
    # Only ASCII digits: int() also takes "1_000", "+7" and digits of other scripts.
    if field.get("type") == "integer" and _DIGITS.fullmatch(text):
        return int(text)
    if field.get("type") == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if field.get("type") == "number":
        with suppress(ValueError):
            return float(text)
    return text


def _validate(model: type[I], values: Mapping[str, object], word: str) -> I:
    try:
        return model.model_validate(values)
    except ValidationError as e:
        # The first thing that is wrong.
        error = e.errors(include_url=False)[0]
    path = [part for part in error["loc"] if isinstance(part, str)]
    is_unknown = error["type"] == "extra_forbidden"
    if error["type"] == "string_unicode" and "properties" in _schema_at(model, path):
        # Half of a surrogate pair in a key, which is none that is known.
        path.append(error["input"])
        is_unknown = True
    name = bounded(".".join(path), 100)
    if is_unknown:
        known = (
            ", ".join(f"'{key}'" for key in _schema_at(model, path[:-1])["properties"])
            or "none"
        )
        raise invalid_param(f"Unknown {word} '{name}'; known are: {known}")
    # Ours, or else pydantic's.
    text = str(error.get("ctx", {}).get("error", error["msg"]))
    raise invalid_param(f"{word.capitalize()} '{name}': {text}" if path else text)


def _schema_at(model: type[Model], path: Sequence[str]) -> Mapping[str, Any]:
    """Return the JSON Schema of an object, or of a key in it."""
    schema = whole = json_schema(model)
    for part in path:
        schema = schema["properties"][part]
        if "$ref" in schema:
            schema = whole["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


@cache
def json_schema(model: type[Model]) -> dict[str, Any]:
    """Return a model's JSON Schema."""
    return {"properties": {}, **model.model_json_schema()}
