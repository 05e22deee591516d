# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI document, and what of docs/ is made from it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from _made import PARAMETERS, openapi_json, parameters_json
from answers import errors_of
from module_case import ModuleTestCase

from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.api._openapi import document

pytestmark = pytest.mark.one_synapse

DOCS = Path(__file__).parent.parent / "docs"

# How to make them anew.
COMMAND = "python docs/_made.py"


def test_file() -> None:
    """docs/openapi.json is current, and what the command line has of it."""
    assert (DOCS / "openapi.json").read_text() == openapi_json(), COMMAND
    assert PARAMETERS.read_text() == parameters_json(), COMMAND


def samples() -> Iterator[tuple[str, str, Any]]:
    """Yield method, path and answer of the documents' samples; `...` is a key there."""
    for page in ("api.md", "diagnosis.md"):
        text = (DOCS / page).read_text()
        for block in re.findall(r"^```console\n\$ curl (.*?)^```", text, re.M | re.S):
            command, begin, rest = block.partition("\n{")
            if begin:
                (path,) = re.findall(r"localhost:8008([^ ?'\n]+)", command)
                rest = re.sub(r"([{,]\s*)\.\.\.(?=\s*})", r'\1"...": 0', begin + rest)
                answer = re.sub(r"(,\s*)\.\.\.(?=\s*])", r'\1"..."', rest)
                yield "POST" if "POST" in command else "GET", path, json.loads(answer)


def test_samples() -> None:
    """Each sample of an answer has the keys and types of the document, but for what it
    leaves out."""
    found = list(samples())
    assert len(found) > 10
    for method, path, answer in found:
        for error in errors_of(method, path, answer):
            at = answer
            for step in error.instance_path:
                at = at[step]
            what = error.schema_path[-1]
            is_of_keys = what in ("required", "additionalProperties")
            is_left_out = "..." in at if is_of_keys else '"..."' in json.dumps(at)
            assert is_left_out, f"{path}: {error}"


def test_routes() -> None:
    """Every route is in the document, with its method, and none that there is not."""
    described = {
        (method.upper(), path.replace("{", "<").replace("}", ">"))
        for path, methods in document()["paths"].items()
        for method in methods
    }
    assert described == {(route.method, route.path) for route in ROUTES}


def objects(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the schemas of all objects, with where they are."""
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield path, schema
        for key, value in schema.items():
            yield from objects(value, f"{path}/{key}")


def test_every_key_is_described() -> None:
    """Every key and parameter has a description, with the unit of times and durations,
    and every object its keys."""
    found = document()
    for name, schema in found["components"]["schemas"].items():
        assert "__" not in name, f"two models are called {name}"
        jsonschema_rs.meta.validate(schema)
    for path, schema in objects(found["components"]["schemas"]):
        assert "additionalProperties" in schema, path
        for key, field in schema["properties"].items():
            assert field.get("description"), (path, key)
            if key.endswith(("_ts", "_ms")):
                assert " ms" in field["description"], (path, key)
    for methods in found["paths"].values():
        for operation in methods.values():
            assert operation["summary"]
            for parameter in operation.get("parameters", ()):
                assert parameter["description"], (operation["summary"], parameter)


def test_v1_without_models() -> None:
    """v1 imports no model: it works beside pydantic 1, where v2 is off."""
    code = (
        "import sys; from synapse_federation_admin.api import ROUTES\n"
        "for route in ROUTES: route.is_v1 and route.load()\n"
        "assert not [name for name in sys.modules if '.api.schemas' in name]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class OpenApiTestCase(ModuleTestCase):
    def test_route(self) -> None:
        """The document is served, and it is the file."""
        body = self.get_json("/_synapse/admin/v2/federation/openapi.json")
        self.assertEqual(body, json.loads((DOCS / "openapi.json").read_text()))
