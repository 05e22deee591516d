# SPDX-License-Identifier: Apache-2.0
"""Whom to ask about a server, as it says itself."""

import json
from typing import Any
from unittest import mock

import pytest
from module_case import V2, ModuleTestCase
from twisted.web.http_headers import Headers

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis import support, well_known
from synapse_federation_admin.diagnosis.answers import Answer
from synapse_federation_admin.diagnosis.resolution import WellKnownRequest
from synapse_federation_admin.diagnosis.support import Support, read_support
from synapse_federation_admin.diagnosis.well_known import Fetched
from synapse_federation_admin.failures.kinds import Failure, FailureKind
from synapse_federation_admin.homeserver.errors import (
    Obstacle,
    ObstacleError,
    RequestSendFailed,
)

pytestmark = pytest.mark.one_synapse

PATH = f"{V2}/destinations/b.example/support"
URL = "https://b.example/.well-known/matrix/support"


def read(content: Any) -> Support:
    return read_support(Support("b.example", 1), json.dumps(content).encode())


@pytest.mark.parametrize(
    ("contact", "told"),
    [
        ({"matrix_id": "@a:b.example"}, ("", "@a:b.example", None)),
        ({"email_address": "a.b+c@b.example"}, ("", None, "a.b+c@b.example")),
        ({"matrix_id": "@a:[::1]:8448", "role": "x" * 500}, None),
        ({"matrix_id": "@a\u202e:b.example", "role": "m.role.admin"}, None),
        ({"matrix_id": "@a:b example"}, None),
        ({"matrix_id": "@a:b.example\n"}, None),
        ({"matrix_id": "@" + "a" * 300 + ":b.example"}, None),
        ({"matrix_id": ["@a:b.example"]}, None),
        ({"email_address": "a@b.example?bcc=c@d.example"}, None),
        ({"email_address": "<b>a@b.example"}, None),
        ({"email_address": "a@b.example\n"}, None),
        ({"role": "m.role.admin"}, None),
        ("@a:b.example", None),
    ],
)
def test_contact(contact: Any, told: tuple[str, str | None, str | None] | None) -> None:
    """Only what is plainly a user ID or an email address is told."""
    found = read({"contacts": [contact]})
    if isinstance(contact, dict) and len(str(contact.get("role", ""))) > 100:
        (only,) = found.contacts
        assert len(only.role) <= limits.WORD
    elif told is None:
        assert (found.contacts, found.left_out) == ((), 1)
    else:
        (only,) = found.contacts
        assert (only.role, only.matrix_id, only.email_address) == told


@pytest.mark.parametrize(
    ("page", "is_told"),
    [
        ("https://b.example/support?a=b#c", True),
        ("https://b.example:444/", True),
        ("http://b.example/", False),
        ("javascript:alert(1)", False),
        ("https://a@b.example/", False),
        ("https://b.example/\u202e", False),
        ('https://b.example/"><b>', False),
        ("https:///x", False),
        ("https://[/", False),
        ("https://b.example/" + "x" * 400, False),
        (7, False),
    ],
)
def test_page(page: Any, is_told: bool) -> None:
    """Only an https URL of a host is told."""
    assert read({"support_page": page}).support_page == (page if is_told else None)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b"\xff", b"[" * 10_000, b" " * 20_000]
)
def test_unreadable(body: bytes) -> None:
    """What is no object of JSON, or is long, is their fault, and data."""
    found = read_support(Support("b.example", 1), body)
    assert found.error is not None
    assert found.error.kind is FailureKind.INVALID_RESPONSE


def test_many() -> None:
    """No more are told than there is room for."""
    found = read({"contacts": [{"matrix_id": "@a:b.example"}] * 50})
    assert (len(found.contacts), found.left_out) == (10, 40)
    assert read({"contacts": {}}).contacts == ()


class SupportTestCase(ModuleTestCase):
    """GET destinations/<destination>/support."""

    def setUp(self) -> None:
        super().setUp()
        self.asked: list[tuple[str, str]] = []
        self.fetched: Fetched = ((), None, None)

        async def fetch(_way: object, host: str, path: str) -> Fetched:
            self.asked.append((host, path))
            return self.fetched

        self.patch(support, "fetch", fetch)

    def test_kept(self) -> None:
        """What the server says is told, and told again for ten minutes."""
        contact = {"role": "m.role.admin", "matrix_id": "@a:b.example"}
        body = json.dumps({"contacts": [contact]}).encode()
        request = WellKnownRequest(URL, 5, status=200)
        self.fetched = ((request,), Answer(200, Headers(), body, False), None)
        first = self.get_json(PATH)
        self.assertEqual(first["contacts"], [{**contact, "email_address": None}])
        self.assertEqual((first["url"], first["status"]), (URL, 200))
        self.assertEqual(self.get_json(PATH), first)
        self.assertEqual(self.asked, [("b.example", support.PATH)])
        self.reactor.advance(601)
        self.get_json(PATH)
        self.assertEqual(len(self.asked), 2)

    def test_fails(self) -> None:
        """Why there is no answer is told."""
        error = Failure(FailureKind.TLS_EXPIRED)
        self.fetched = ((WellKnownRequest(URL, 5, error=error),), None, error)
        self.assertEqual(self.get_json(PATH)["error"]["kind"], "tls_expired")

    def test_not_asked(self) -> None:
        """What is not to be contacted is not asked."""
        for name, kind in (("test", "invalid_name"), ("a b", "invalid_name")):
            path = f"{V2}/destinations/{name.replace(' ', '%20')}/support"
            self.assertEqual(self.get_json(path)["error"]["kind"], kind)
        path = f"{V2}/destinations/192.0.2.1/support"
        self.assertIn("IP address", self.get_json(path)["skipped"])
        whitelist = {"federation_domain_whitelist": {"a.example": True}}
        with mock.patch.multiple(self.hs.config.federation, **whitelist):
            self.assertEqual(self.get_json(PATH)["error"]["kind"], "not_allowed")
        self.assertEqual(self.asked, [])


class NothingLeftTestCase(ModuleTestCase):
    """This process has no thread, or descriptor, left for a request."""

    def test_nothing_left(self) -> None:
        """That is told as it is, and asked again: it is no fault of anybody else."""
        none = ObstacleError(Obstacle.OUT_OF_RESOURCES, "b.example")
        failed = RequestSendFailed(none, can_retry=False)
        with mock.patch.object(well_known, "ask", side_effect=failed) as asked:
            for _ in range(2):
                error = self.get_json(PATH)["error"]
                self.assertIn("thread", error["message"])
            self.assertEqual(asked.call_count, 2)
            channel = self.ask("POST", PATH.replace("support", "diagnose"))
        for stage in channel.json_body["stages"][1:7]:
            self.assertEqual(stage["reason"], "out_of_resources", stage)
