# SPDX-License-Identifier: Apache-2.0
"""Holds every answer that a test gets against the OpenAPI document."""

import json
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import quote

from jsonschema_rs import Draft202012Validator, ValidationError

from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.api._openapi import document

# Of a longer list the rest is like the beginning: a list may have a million rows.
MAX_ITEMS = 100

# What needs no route: an unknown path or method, and the listener.
NO_ROUTE = {"errcode": "M_UNRECOGNIZED"}


def check_answer(
    method: str, target: str, status: int, content_type: str, body: bytes
) -> None:
    """Fail if an answer of our API is not as the document has it.

    Args:
        method: `GET`.
        target: The path, with or without a query.
        status: The HTTP status.
        content_type: The value of `Content-Type`.
        body: The whole body.
    """
    operation = _operation(method, target.partition("?")[0])
    if operation is None:
        return
    media_type = content_type.partition(";")[0]
    what = f"{method} {target}: {status}"
    if media_type != "application/json":
        assert status == 200, what
        assert any(media_type == known.partition(";")[0] for known in operation["200"])
        if media_type == "application/x-ndjson":
            for line in body.splitlines()[:MAX_ITEMS]:
                _check(operation["200"][media_type], json.loads(line), what)
        return
    answer = json.loads(body)
    if status >= 400 and answer.get("errcode") == NO_ROUTE["errcode"]:
        return
    assert str(status) in operation, f"{what} is not in the document"
    _check(operation[str(status)][media_type], answer, what)


def errors_of(method: str, path: str, answer: Any) -> Iterator[ValidationError]:
    """Return what is wrong with a sample of an answer, 200."""
    operation = _operation(method, path)
    assert operation is not None, path
    return _validator(operation["200"]["application/json"]).iter_errors(answer)


def _check(reference: str, answer: Any, what: str) -> None:
    error = next(_validator(reference).iter_errors(_cut(answer)), None)
    assert error is None, f"{what}: {error}"


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut(inner) for key, inner in value.items()}
    return (
        [_cut(each) for each in value[:MAX_ITEMS]] if isinstance(value, list) else value
    )


@cache
def _validator(reference: str) -> Draft202012Validator:
    return Draft202012Validator({**document(), "$ref": reference})


@cache
def _operation(method: str, path: str) -> dict[str, dict[str, str]] | None:
    """Return where the schema of each status and media type is; None if not ours."""
    for route in ROUTES:
        if route.method == method and route.pattern.fullmatch(path):
            name = route.path.replace("<", "{").replace(">", "}")
            responses = document()["paths"][name][method.lower()]["responses"]
            begin = f"#/paths/{_pointer(name)}/{method.lower()}/responses"
            return {
                status: {
                    kind: f"{begin}/{status}/content/{_pointer(kind)}/schema"
                    for kind in response["content"]
                }
                for status, response in responses.items()
            }
    return None


def _pointer(name: str) -> str:
    return quote(name.replace("~", "~0").replace("/", "~1"))
