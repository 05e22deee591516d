# SPDX-License-Identifier: Apache-2.0
"""Bad input, from a table: a clear answer, never a 500. On both databases."""

from typing import Any

import pytest
from module_case import DESTINATIONS, ModuleTestCase
from parameterized import parameterized

V2 = "/_synapse/admin/v2/federation/destinations"

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

    @parameterized.expand(SUFFIXES)
    def test_names(self, method: str, suffix: bytes) -> None:
        """What is no known destination is 404, in JSON, and nothing is written."""
        for what, name in NAMES.items():
            url = DESTINATIONS.encode() + b"/" + name + suffix
            channel = self.ask(method, url)
            self.assertEqual(channel.code, 404, (what, channel.result))
            self.assertIn(
                channel.json_body["errcode"], ("M_NOT_FOUND", "M_UNRECOGNIZED"), what
            )
        self.assertEqual(self.names(), ["a.example"])

    @parameterized.expand(["", "/a.example", "/a.example/rooms"])
    def test_queries(self, path: str) -> None:
        """A query is answered, or refused with 400 M_INVALID_PARAM."""
        for what, query in QUERIES.items():
            channel = self.ask("GET", (DESTINATIONS + path).encode() + b"?" + query)
            self.assertIn(channel.code, (200, 400), (what, channel.result))
            if channel.code == 400:
                self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM", what)

    @parameterized.expand(["", "/a.example", "/a.example/rooms"])
    def test_bodies_of_get(self, path: str) -> None:
        """A GET ignores its body."""
        for what, body in BODIES.items():
            channel = self.ask("GET", DESTINATIONS + path, content=body)
            self.assertEqual(channel.code, 200, (what, channel.result))

    def test_bodies_of_reset(self) -> None:
        """A reset takes any body."""
        url = self.destination_path("a.example", "/reset_connection")
        for what, body in BODIES.items():
            self.add_destination("a.example", 10, 20, 5, 7)
            channel = self.ask("POST", url, content=body)
            self.assertEqual(channel.code, 200, (what, channel.result))

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
            self.assertEqual(stages["stored"]["outcome"], "ok", what)
        self.assertEqual(self.names(), ["a.example"])

    def test_bodies_to_diagnose(self) -> None:
        """A diagnosis takes no body but an empty object."""
        url = V2 + "/a..example/diagnose"
        for what, body in BODIES.items():
            channel = self.ask("POST", url, content=body)
            self.assertEqual(channel.code, 400, (what, channel.result))
        for good in (b"", b"{}"):
            self.assertEqual(self.ask("POST", url, content=good).code, 200)
        channel = self.ask("POST", url, content=b'{"timeout_ms": 1}')
        self.assertEqual(channel.json_body["errcode"], "M_INVALID_PARAM")
        self.assertIn("timeout_ms", channel.json_body["error"])
        self.assertEqual(self.ask("POST", V2 + "//diagnose").code, 404)

    def test_diagnosis_without_the_database(self) -> None:
        """What cannot be read costs a diagnosis that stage, and nothing else."""
        self.run_sql("ALTER TABLE received_transactions RENAME TO gone")
        channel = self.ask("POST", V2 + "/a..example/diagnose")
        self.run_sql("ALTER TABLE gone RENAME TO received_transactions")
        self.assertEqual(channel.code, 200, channel.result)
        stage = channel.json_body["stages"][8]
        self.assertEqual((stage["name"], stage["outcome"]), ("stored", "skipped"))
        self.assertIn("cannot be read", stage["message"])
        self.assertIsNone(channel.json_body["stored"])
        self.assertEqual(channel.json_body["kind"], "invalid_name")
