# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, made from the servlets and their models."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.json_schema import models_json_schema
from synapse.module_api import JsonDict, SynapseRequest

from synapse_federation_admin import __version__
from synapse_federation_admin.api._base import AdminServlet
from synapse_federation_admin.api._operation import Operation, json_schema
from synapse_federation_admin.api.schemas.model import (
    Answer,
    Error,
    Input,
    Model,
    Nothing,
)
from synapse_federation_admin.api.schemas.v1 import OPERATIONS

METHODS = ("GET", "PUT", "POST", "DELETE")

_PREFIX = "/_synapse/admin"

_PATH_PARAMETERS = {
    "destination": "The server name, exact, with its port if it has one.",
    "run_id": "The run's ID.",
}

_EVERY_ROUTE = {
    401: "No access token (`M_MISSING_TOKEN`), or none that is valid "
    "(`M_UNKNOWN_TOKEN`).",
    403: "The user is no server admin (`M_FORBIDDEN`).",
    500: "The homeserver failed, or its database (`M_UNKNOWN`).",
}
_EVERY_V2 = {
    503: "This feature is switched off, since Synapse lacks something that it needs: "
    "the text names both (`M_UNKNOWN`).",
}
_BAD_QUERY = "A query parameter is wrong: the text names it (`M_INVALID_PARAM`)."
_BAD_BODY = (
    "A key is wrong: the text names it (`M_INVALID_PARAM`); the body is no JSON "
    "(`M_NOT_JSON`) or no object (`M_BAD_JSON`)."
)


class Document(Answer):
    """An OpenAPI 3.1 document."""

    model_config = ConfigDict(extra="allow")

    openapi: str = Field(description="The version of OpenAPI.")
    info: dict[str, Any] = Field(description="What the API is.")
    paths: dict[str, Any] = Field(description="Its routes.")


class OpenApiServlet(AdminServlet):
    """Describe this API, as OpenAPI 3.1.

    GET /_synapse/admin/v2/federation/openapi.json

    200 OK: the document, which is docs/openapi.json, too.
    """

    GET = Operation(Nothing, Document)

    async def on_GET(self, request: SynapseRequest) -> tuple[int, JsonDict]:
        """Answer GET."""
        # Not before: these servlets are among those.
        from synapse_federation_admin.api import ENDPOINTS

        await self._services.homeserver.require_admin(request)
        self.GET.parse(request)
        return HTTPStatus.OK, document(
            tuple(
                endpoint.load()
                for endpoint in ENDPOINTS
                if all(map(self._services.features.is_on, endpoint.needs))
            )
        )


def operations(
    servlets: Iterable[type[AdminServlet]],
) -> Iterator[tuple[type[AdminServlet], str, Operation[Input]]]:
    """Yield each method of each servlet, and what it takes and gives."""
    for servlet in servlets:
        for method in METHODS:
            if hasattr(servlet, f"on_{method}"):
                declared = OPERATIONS.get((servlet.PATH, method))
                yield servlet, method, declared or getattr(servlet, method)


@lru_cache(maxsize=1)
def document(servlets: tuple[type[AdminServlet], ...]) -> JsonDict:
    """Return the document for some servlets."""
    every = list(operations(servlets))
    models: set[type[Model]] = {Error}
    for _, _, operation in every:
        models |= {operation.gives, operation.gives_dry or operation.gives}
    models |= {op.takes for _, method, op in every if method in ("PUT", "POST")}
    _, schemas = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {}
    for servlet, method, operation in every:
        path = _PREFIX + re.sub("<([a-z_]+)>", r"{\1}", servlet.PATH)
        paths.setdefault(path, {})[method.lower()] = _operation(
            servlet, method, operation
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Federation admin API",
            "version": __version__,
            "description": "Federation with every other server, as the module "
            "synapse-federation-admin serves it from inside Synapse. Keys that end in "
            "`_ts` are times in ms since the epoch, keys that end in `_ms` are "
            "durations in ms.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"access_token": []}],
        "paths": paths,
        "components": {
            "schemas": schemas["$defs"],
            "securitySchemes": {
                "access_token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "The access token of a server admin.",
                }
            },
        },
    }


def _operation(
    servlet: type[AdminServlet], method: str, operation: Operation[Input]
) -> JsonDict:
    is_v2 = servlet.PATH.startswith("/v2/")
    takes_body = method in ("PUT", "POST")
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall("<([a-z_]+)>", servlet.PATH)
    ]
    errors = {**_EVERY_ROUTE, **(_EVERY_V2 if is_v2 else {}), **operation.errors}
    found: JsonDict = {
        "operationId": method.lower() + servlet.__name__.removesuffix("Servlet"),
        "summary": _summary(servlet, method),
        "tags": ["v2" if is_v2 else "v1"],
    }
    if takes_body and is_v2:
        errors[400] = " ".join([_BAD_BODY, operation.errors.get(400, "")]).strip()
        found["requestBody"] = {
            "required": bool(json_schema(operation.takes).get("required")),
            "content": {"application/json": {"schema": _ref(operation.takes)}},
        }
    elif not takes_body:
        parameters += _query_parameters(operation)
        if is_v2 or operation.takes is not Nothing:
            errors[400] = _BAD_QUERY
    if parameters:
        found["parameters"] = parameters
    found["responses"] = {
        "200": {
            "description": (operation.gives.__doc__ or "").partition("\n")[0],
            "content": {
                media_type: {
                    "schema": {"type": "string"}
                    if media_type.startswith("text/")
                    else _given(operation)
                }
                for media_type in operation.media_types
            },
        },
        **{
            str(status): {
                "description": errors[status],
                "content": {"application/json": {"schema": _ref(Error)}},
            }
            for status in sorted(errors)
        },
    }
    return found


def _given(operation: Operation[Input]) -> JsonDict:
    if operation.gives_dry is None:
        return _ref(operation.gives)
    return {"anyOf": [_ref(operation.gives), _ref(operation.gives_dry)]}


def _query_parameters(operation: Operation[Input]) -> list[dict[str, Any]]:
    schema = json_schema(operation.takes)
    found = []
    for name, field in schema["properties"].items():
        described = {**field}
        text = described.pop("description")
        for holder in (described, described.get("items", {})):
            if "$ref" in holder:
                named = schema["$defs"][holder.pop("$ref").rpartition("/")[2]]
                holder.update(type=named["type"], enum=named["enum"])
        found.append(
            {"name": name, "in": "query", "description": text, "schema": described}
        )
    return found


def _summary(servlet: type[AdminServlet], method: str) -> str:
    """Return the first line that says what a method does: of it, or of its servlet."""
    own = getattr(servlet, f"on_{method}").__doc__ or ""
    text = (servlet.__doc__ or "") if own.startswith("Answer ") else own
    return text.partition("\n")[0].rstrip(".")


def _ref(model: type[Any]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
