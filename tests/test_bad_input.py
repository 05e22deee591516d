# SPDX-License-Identifier: Apache-2.0
"""Bad input, from a table: a clear answer, never a 500. On both databases."""

import errno
from collections.abc import Iterator
from typing import Any
from unittest import mock
from urllib.parse import quote

import pytest
from module_case import DESTINATIONS, ModuleTestCase
from synapse.util.json import json_decoder

from synapse_federation_admin import limits
from synapse_federation_admin.api import ROUTES
from synapse_federation_admin.api._openapi import document
from synapse_federation_admin.destinations.reader import DestinationReader
from synapse_federation_admin.homeserver.homeserver import Homeserver
from synapse_federation_admin.storage.schema import Tables

pytestmark = pytest.mark.one_synapse

FEDERATION = "/_synapse/admin/v2/federation"
V2 = f"{FEDERATION}/destinations"

# Destinations as they may stand in a path: what they are, and the bytes. All of them
# ASCII, as a URL is: a raw byte beyond that fails in Synapse's own site, before any
# resource, ours or another, is found (`synapse/http/proxy.py`, `ProxySite`).
NAMES: dict[str, bytes] = {
    "space": b"%20",
    "slash": b"%2F",
    "two slashes": b"%2F%2F",
    "dots": b"..",
    "encoded dots": b"%2E%2E",
    "nul": b"%00",
    "nul inside": b"a%00b.example",
    "newline": b"a%0Ab",
    "not utf-8": b"%ff%fe",
    "cut utf-8": b"%c3",
    "surrogate": b"%ed%a0%80",
    "unicode": b"%E2%98%83.example",
    "bad escape": b"%zz",
    "lone percent": b"%",
    "double encoded": b"%252F",
    "quote": b"'%3B%20DROP%20TABLE%20destinations--",
    "wildcards": b"%25_%5C",
    "user id": b"@user:example",
    "url": b"https%3A%2F%2Fexample",
    "bad port": b"example:99999999999999999999",
    "open bracket": b"[::1",
    "long": b"a" * 300,
    "very long": b"a" * 10_000,
    "html": b"%3Cscript%3E",
    "semicolon": b"a;b=c",
}

SUFFIXES = (("GET", b""), ("GET", b"/rooms"), ("POST", b"/reset_connection"))

QUERIES: dict[str, bytes] = {
    "enormous": b"from=" + b"9" * 4000 + b"&limit=" + b"9" * 4000,
    "beyond 64 bits": b"from=9223372036854775808&limit=9223372036854775808",
    "nul": b"destination=%00",
    "nul inside": b"destination=a%00b",
    "not utf-8": b"destination=%ff",
    "surrogate": b"destination=%ed%a0%80",
    "wildcards": b"destination=%25%5f%5c%21",
    "long": b"destination=" + b"%25" * 3000,
    "quote": b"destination=%27%20OR%201=1--&order_by=destination",
    "repeated": b"limit=1&limit=2&from=0&from=x&dir=f&dir=b&destination=a",
    "no value": b"limit&from&dir&destination",
    "empty": b"limit=&from=&dir=&order_by=&destination=",
    "sql in order": b"order_by=(select%201)",
    "list": b"limit[]=1&from[0]=1",
    "odd": b"&&&===&%&;;",
    "float": b"limit=1.0&from=NaN",
    "unknown": b"fields=*&sort=up",
}

BODIES: dict[str, bytes] = {
    "broken": b"{",
    "list": b"[]",
    "number": b"1",
    "text": b'"',
    "not utf-8": b"\xff\xfe\x00",
    "nan": b'{"a": NaN}',
    "deep": b"[" * 2000,
    "big": b'{"a": "' + b"x" * 3000 + b'"}',
}


@pytest.mark.database
class BadInputTestCase(ModuleTestCase):
    """As an admin: others do not get that far."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.add_destination("a.example", 10, 20, 5, 7)

    def test_names(self) -> None:
        """What is no known destination is 404, in JSON, and nothing is written."""
        for what, name in NAMES.items():
            for method, suffix in SUFFIXES:
                url = DESTINATIONS.encode() + b"/" + name + suffix
                channel = self.ask(method, url)
                told = (what, suffix, channel.result)
                self.assertEqual(channel.code, 404, told)
                known = ("M_NOT_FOUND", "M_UNRECOGNIZED")
                self.assertIn(channel.json_body["errcode"], known, told)
        self.assertEqual(self.names(), ["a.example"])

    def test_queries(self) -> None:
        """A query is answered, or refused with 400; the body of a GET is ignored."""
        for path in ("", "/a.example", "/a.example/rooms"):
            for query in QUERIES.values():
                url = (DESTINATIONS + path).encode() + b"?" + query
                channel = self.ask("GET", url)
                self.assertIn(channel.code, (200, 400), (url, channel.result))
                if channel.code == 400:
                    self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
            for body in BODIES.values():
                channel = self.ask("GET", DESTINATIONS + path, content=body)
                self.assertEqual(channel.code, 200, (path, body, channel.result))

    def test_names_to_diagnose(self) -> None:
        """What is no server name is diagnosed as that: 200, and never sent to."""
        for what, name in NAMES.items():
            channel = self.ask("POST", V2.encode() + b"/" + name + b"/diagnose")
            if channel.code == 404:
                # Not a path of ours: the name has a slash, or steps out.
                self.assertEqual(channel.json_body["errcode"], "M_UNRECOGNIZED", what)
                continue
            self.assertEqual(channel.code, 200, (what, channel.result))
            report = channel.json_body
            self.assertEqual(report["verdict"], "failing", what)
            self.assertEqual(report["kind"], "invalid_name", what)
            stages = {stage["name"]: stage for stage in report["stages"]}
            self.assertEqual(stages["authenticated"]["outcome"], "skipped", what)
            self.assertEqual(stages["sender"]["outcome"], "skipped", what)
            self.assertEqual(stages["stored"]["outcome"], "ok", what)
        self.assertEqual(self.names(), ["a.example"])

    def test_bodies_to_diagnose(self) -> None:
        """A diagnosis takes no body but an empty object, and a name."""
        for good in (b"", b"{}"):
            channel = self.ask("POST", V2 + "/a..example/diagnose", content=good)
            self.assertEqual(channel.code, 200)
        self.assertEqual(self.ask("POST", V2 + "//diagnose").code, 404)

    def test_diagnosis_without_the_database(self) -> None:
        """What cannot be read costs a diagnosis that stage, and nothing else."""
        self.run_sql("ALTER TABLE received_transactions RENAME TO gone")
        channel = self.ask("POST", V2 + "/a..example/diagnose")
        self.run_sql("ALTER TABLE gone RENAME TO received_transactions")
        self.assertEqual(channel.code, 200, channel.result)
        stage = channel.json_body["stages"][9]
        self.assertEqual((stage["name"], stage["outcome"]), ("stored", "skipped"))
        self.assertIn("cannot be read", stage["message"])
        self.assertIsNone(channel.json_body["stored"])
        self.assertEqual(channel.json_body["kind"], "invalid_name")


# What a query parameter or key of each type is not, beside what its schema forbids.
WRONG_TEXTS: dict[str, list[str]] = {
    "integer": ["", "x", "%2B5", "-1", "1_0", "1.0", "%201", "%D9%A1", "9" * 30],
    "boolean": ["", "1", "True"],
}
WRONG_VALUES: dict[str, list[Any]] = {
    "integer": ["1", True, 1.5, None, [], 10**20],
    "number": ["5", True, None, [], 0, 10**20],
    "boolean": [1, "true", None],
    "string": [1, True, None, [], "\ud800"],
    "array": [1, {}, None, [1], ["\ud800"]],
    "object": [1, "a", [], None],
}
WRONG_DURATIONS = ["", "7", "-7d", "7D", "7 d", "9999999999d"]

# What each body needs beside the key that is wrong.
BODIES_OF = {
    "cap_backoff": {"max_retry_interval_ms": 1},
    "forget": {"filter": {"failing_for": "30d"}},
    "reconnect": {"all_failing": True},
}


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema, or the one that it refers to."""
    if "$ref" not in schema:
        return schema
    name = schema["$ref"].rpartition("/")[2]
    found: dict[str, Any] = document()["components"]["schemas"][name]
    return found


def wrong_texts(schema: dict[str, Any]) -> Iterator[str]:
    """Yield what a query parameter must not be."""
    values = resolved(schema.get("items", schema))
    yield "%ff"
    yield from WRONG_TEXTS.get(values["type"], ())
    if "enum" in values:
        yield from ("", "no-such")
    if values.get("pattern", "").startswith("^([0-9]"):
        yield from map(quote, WRONG_DURATIONS)
    elif "pattern" in values:
        yield "%00"
    if "maximum" in values:
        yield from (str(values["minimum"] - 1), str(values["maximum"] + 1))


def wrong_values(schema: dict[str, Any]) -> Iterator[Any]:
    """Yield what a key of a body must not be."""
    schema = resolved(schema)
    yield from WRONG_VALUES[schema["type"]]
    if schema["type"] == "array":
        yield from ("a.example", ["no-such"] * (schema.get("maxItems", 0) + 1))
    if schema.get("pattern", "").startswith("^([0-9]"):
        yield from WRONG_DURATIONS
    elif "pattern" in schema:
        yield from ("\0", "x" * (schema["maxLength"] + 1))
    if "maximum" in schema:
        yield from (schema["minimum"] - 1, schema["maximum"] + 1)


class EveryInputTestCase(ModuleTestCase):
    """Walks over the document: no parameter and no key of v2 can be forgotten."""

    def prepare(self, *args: Any) -> None:
        super().prepare(*args)
        self.add_destination("a.example", 10, 20, 5, 7)

    def routes(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        for path, methods in document()["paths"].items():
            if "/v2/" in path:
                target = path.replace("{destination}", "a.example")
                target = target.replace("{run_id}", "a")
                for method, operation in methods.items():
                    yield method.upper(), target, operation

    def check(self, method: str, target: str, named: str, content: Any = b"") -> None:
        """400 `M_INVALID_PARAM`, and the text names what is wrong."""
        channel = self.ask(method, target, content=content)
        what = (method, target, str(content)[:100], channel.result)
        self.assertEqual(channel.code, 400, what)
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM", what)
        self.assertIn(named, channel.json_body["error"], what)

    def test_query_parameters(self) -> None:
        """One that is unknown, doubled or wrong is refused by its name."""
        for method, target, operation in self.routes():
            for unknown in ("stauts=online", "%ff=1", "since=1&from_=1"):
                self.check(method, f"{target}?{unknown}", "query parameter")
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "path":
                    continue
                name, schema = parameter["name"], parameter["schema"]
                wrong = list(wrong_texts(schema))
                if name == "from":
                    wrong += ["", "100"]
                for text in wrong:
                    self.check(method, f"{target}?{name}={text}", f"'{name}'")
                if schema["type"] != "array":
                    doubled = f"{target}?{name}=a&{name}=a"
                    self.check(method, doubled, f"'{name}' must be given only once")

    def test_bodies(self) -> None:
        """A key that is unknown or wrong is refused by its name; nothing is changed."""
        for method, target, operation in self.routes():
            if "requestBody" not in operation:
                continue
            for broken, errcode in ((b"{", "M_NOT_JSON"), (b"[]", "M_BAD_JSON")):
                channel = self.ask(method, target, content=broken)
                self.assertEqual(channel.json_body["errcode"], errcode)
            base = BODIES_OF.get(target.rpartition("/")[2], {})
            if "a.example" in target:
                base = {}
            schema = operation["requestBody"]["content"]["application/json"]["schema"]
            self.check_keys(method, target, schema, base, "")
        self.assertEqual(self.get_json(f"{FEDERATION}/runs")["runs"], [])
        self.assertEqual(self.get_json(f"{FEDERATION}/audit")["entries"], [])
        row = self.get_json(self.destination_path("a.example"))
        self.assertEqual(row["retry_last_ts"], 10)

    def check_keys(
        self, method: str, target: str, schema: Any, base: dict[str, Any], prefix: str
    ) -> None:
        def body(key: str, value: Any) -> dict[str, Any]:
            if prefix:
                return {**base, "filter": {"failing_for": "30d", key: value}}
            return {**base, key: value}

        self.check(method, target, f"'{prefix}no_such'", body("no_such", 1))
        self.check(method, target, f"Unknown key '{prefix}\\ud800'", body("\ud800", 1))
        for key in resolved(schema).get("required", ()):
            rest = {name: value for name, value in base.items() if name != key}
            self.check(method, target, f"'{key}': Field required", rest)
        for key, field in resolved(schema)["properties"].items():
            for value in wrong_values(field):
                self.check(method, target, f"'{prefix}{key}'", body(key, value))
            if resolved(field)["type"] == "object":
                others = {k: v for k, v in base.items() if k != "all_failing"}
                self.check_keys(method, target, field, others, f"{key}.")


class LargeBodyTestCase(ModuleTestCase):
    def test_large_bodies(self) -> None:
        """A body that would take long to parse is refused unread, by its size.

        At each route that takes one. `reset_connection` takes any, and reads none.
        """
        self.add_destination("a.example", 10, 20, 5)
        for route in ROUTES:
            if route.method != "POST" or route.is_v1:
                continue
            path = route.path.replace("<destination>", "a.example")
            most = route.load().body_bytes  # type: ignore[attr-defined]  # of v2
            with mock.patch.object(json_decoder, "decode") as decode:
                for size, code in ((most + 1, 413), (12_000_000, 413), (most, 400)):
                    channel = self.ask("POST", path, content=b"7" * size)
                    self.assertEqual(channel.code, code, (path, size))
                    if code == 413:
                        self.assertEqual(channel.json_body["errcode"], "M_TOO_LARGE")
                        self.assertIn(f" {most} bytes", channel.json_body["error"])
                        decode.assert_not_called()
                decode.assert_called_once()
        reset = f"{DESTINATIONS}/a.example/reset_connection"
        for body in (b"7" * 12_000_000, b"{", b"{}", b""):
            self.add_destination("a.example", 10, 20, 5)
            with mock.patch.object(json_decoder, "decode") as decode:
                self.assertEqual(self.ask("POST", reset, content=body).code, 200)
            decode.assert_not_called()

    def test_database_away(self) -> None:
        """A database that is away, or full, is told; it is no fault of this module."""
        full = self.store.database_engine.module.OperationalError("disk is full")

        async def goes(*_: object, **__: object) -> None:
            await self.homeserver.sleep_ms(1)
            raise full

        for of, name, path in (
            (Tables, "run", f"{FEDERATION}/audit"),
            # Who asks is read there, too.
            (self.hs.get_auth(), "get_user_by_req", f"{FEDERATION}/audit"),
            # The first piece of a long list.
            (DestinationReader, "pass_over", f"{FEDERATION}/destinations/export"),
            (DestinationReader, "pass_over", f"{DESTINATIONS}?limit=100000"),
        ):
            with mock.patch.object(of, name, side_effect=goes):
                channel = self.ask("GET", path)
            self.assertEqual(channel.code, 503, channel.result)
            self.assertIn("database", channel.json_body["error"])
        # As psycopg2 tells that it went while its answer was read.
        went = self.store.database_engine.module.DatabaseError("server closed")
        for is_postgres in (True, False):
            with mock.patch.object(Homeserver, "is_postgres", is_postgres):
                is_away = self.homeserver.is_database_away(went)
            self.assertEqual(is_away, is_postgres)

    def test_no_descriptor(self) -> None:
        """What is told of this process needs no file."""
        none = OSError(errno.EMFILE, "Too many open files")
        with mock.patch("importlib.metadata.Distribution.from_name", side_effect=none):
            for path in ("status", "instances"):
                channel = self.ask("GET", f"{FEDERATION}/{path}")
                self.assertEqual(channel.code, 200, channel.result)

    def test_many_fields(self) -> None:
        """What a form brings is not looked at one by one."""
        fields = "&".join(f"f{number}=1" for number in range(20_000))
        with mock.patch("synapse_federation_admin.api._operation._validate") as look:
            channel = self.make_request(
                "POST",
                f"{FEDERATION}/reconnect",
                fields,
                access_token=self.admin_token,
                content_type=b"application/x-www-form-urlencoded",
            )
        look.assert_not_called()
        self.assertEqual(channel.code, 400, channel.result)
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")

    def test_many_parts(self) -> None:
        """Nor is a body parsed that has more in it than a list of names."""
        path = f"{FEDERATION}/reconnect"
        count = limits.NAMES_BODY_BYTES // 20
        keys = ",".join(f'"{number:x}" \t: 1' for number in range(count))
        few = ",".join(f'"{number}":1' for number in range(limits.BODY_PARTS + 1))
        for body in (
            f"{{{few}}}",
            "[" * (limits.BODY_BYTES - 1),
            f"{{{keys}}}",
            f'{{"filter": {{{keys}}}}}',
            f'{{"destinations": [{", ".join(["[]"] * count)}]}}',
            f'{{"destinations": [{", ".join(["{}"] * count)}]}}',
        ):
            with mock.patch.object(json_decoder, "decode") as decode:
                channel = self.ask("POST", path, content=body)
            decode.assert_not_called()
            self.assertEqual(channel.code, 413, channel.result)
        names = [f"[2001:db8::{n:x}]:8448" for n in range(limits.NAMES_OF_A_RUN)]
        content = {"destinations": names, "dry_run": True, "ignore_unknown": True}
        channel = self.ask("POST", path, content=content)
        self.assertEqual(channel.code, 200, channel.result)
