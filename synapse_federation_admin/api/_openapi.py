# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, made from the routes and their models."""

import re
from functools import lru_cache
from typing import Any

from pydantic import ConfigDict, Field
from pydantic.json_schema import models_json_schema
from synapse.module_api import JsonDict

from synapse_federation_admin import __version__
from synapse_federation_admin.api import ROUTES, Route
from synapse_federation_admin.api._base import Asked
from synapse_federation_admin.api._operation import Operation, json_schema, operation
from synapse_federation_admin.api.schemas.model import (
    Answer,
    Error,
    Input,
    Model,
    Nothing,
)
from synapse_federation_admin.api.schemas.v1 import OPERATIONS
from synapse_federation_admin.api.schemas.values import model_of

_PATH_PARAMETERS = {
    "destination": "The server name, exact, with its port if it has one.",
    "run_id": "The run's ID.",
}

_EVERY_ROUTE = {
    401: "No access token (`M_MISSING_TOKEN`), or none that is valid "
    "(`M_UNKNOWN_TOKEN`).",
    403: "The user is no server admin (`M_FORBIDDEN`).",
    500: "The homeserver failed (`M_UNKNOWN`).",
    503: "The database cannot be used just now: it is away, or full (`M_UNKNOWN`).",
}
_EVERY_V2 = {
    503: "This feature is switched off, since Synapse lacks something that it needs: "
    "the text names both. Or the database cannot be used just now: it is away, or full "
    "(`M_UNKNOWN`).",
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


@operation(Nothing, Document)
async def get_openapi(asked: Asked, _: Nothing) -> JsonDict:
    """Describe this API, as OpenAPI 3.1.

    GET /_synapse/admin/v2/federation/openapi.json

    200 OK: the document, which is docs/openapi.json, too.
    """
    is_on = asked.services.features.is_on
    routes = tuple(route for route in ROUTES if all(map(is_on, route.needs)))
    # For the first who asks, each model is made now, which would hold everybody up.
    turn = asked.services.homeserver.turn()
    for route in routes:
        declared = declared_for(route)
        for model in (declared.takes, model_of(declared.gives)):
            json_schema(model)
            await turn.end_if_long()
    return document(routes)


@lru_cache(maxsize=1)
def document(routes: tuple[Route, ...] = ROUTES) -> JsonDict:
    """Return the document for some routes."""
    models: set[type[Model]] = {Error}
    paths: dict[str, Any] = {}
    for route in routes:
        declared = declared_for(route)
        models |= {model_of(declared.gives), declared.gives_dry or Error}
        if route.method == "POST":
            models.add(declared.takes)
        path = re.sub("<([a-z_]+)>", r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, declared)
    _, schemas = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda m: m.__name__)],
        ref_template="#/components/schemas/{model}",
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


def declared_for(route: Route) -> Operation[Input]:
    """Return what a route takes and gives."""
    loaded: Any = route.load()
    return loaded if isinstance(loaded, Operation) else OPERATIONS[route.name]


def _operation(route: Route, declared: Operation[Input]) -> JsonDict:
    contract = (declared.handler or route.load()).__doc__ or ""
    words = route.name.split("_")
    found: JsonDict = {
        "operationId": words[0] + "".join(map(str.capitalize, words[1:])),
        "summary": contract.partition("\n")[0].rstrip("."),
        "tags": ["v1" if route.is_v1 else "v2"],
    }
    errors = {**_EVERY_ROUTE, **({} if route.is_v1 else _EVERY_V2), **declared.errors}
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "description": _PATH_PARAMETERS[name],
            "schema": {"type": "string"},
        }
        for name in re.findall("<([a-z_]+)>", route.path)
    ]
    if route.method != "POST":
        parameters += _query_parameters(declared)
        if not route.is_v1 or declared.takes is not Nothing:
            errors[400] = _BAD_QUERY
    elif not route.is_v1:
        errors[400] = " ".join([_BAD_BODY, declared.errors.get(400, "")]).strip()
        errors[413] = (
            f"The body has more than {declared.body_bytes} bytes (`M_TOO_LARGE`)."
        )
        found["requestBody"] = {
            "required": bool(json_schema(declared.takes).get("required")),
            "content": {"application/json": {"schema": _ref(declared.takes)}},
        }
    if parameters:
        found["parameters"] = parameters
    answer = model_of(declared.gives)
    gives = _ref(answer)
    if declared.gives_dry is not None:
        gives = {"anyOf": [gives, _ref(declared.gives_dry)]}
    found["responses"] = {
        "200": {
            "description": (answer.__doc__ or "").partition("\n")[0],
            "content": {
                media_type: {
                    "schema": {"type": "string"}
                    if media_type.startswith("text/")
                    else gives
                }
                for media_type in declared.media_types
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


def _query_parameters(declared: Operation[Input]) -> list[dict[str, Any]]:
    schema = json_schema(declared.takes)
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


def _ref(model: type[Model]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
