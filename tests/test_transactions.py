# SPDX-License-Identifier: Apache-2.0
"""The contact of a diagnosis, beside the real transactions of this process."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from synapse.api.errors import HttpResponseException, RequestSendFailed
from twisted.internet.defer import Deferred, ensureDeferred

from synapse_federation_admin.diagnosis.findings import AuthenticatedFindings
from synapse_federation_admin.diagnosis.requests import check_authenticated
from synapse_federation_admin.homeserver.transactions import Transactions

NAME = "a.example"
URI = b"matrix-federation://a.example/_matrix/federation/v1/send/1"


class World:
    """A process that sends; a diagnosis is made of `NAME`."""

    def __init__(self) -> None:
        self.now_ms = 1000
        self.left_ms = 20_000
        # What comes of contacts; and of real transactions, and of requests with them.
        self.contacts: list[Any] = []
        self.ends: list[Deferred[Any]] = []
        self.answers: list[Deferred[Any]] = []
        # What happens while a diagnosis waits.
        self.meanwhile: list[Any] = []
        self.client = SimpleNamespace(send_transaction=self._send)
        self.agent = SimpleNamespace(request=self._request)
        hs: Any = mock.Mock()
        hs.get_clock().time_msec = lambda: self.now_ms
        hs.get_federation_transport_client = lambda: self.client
        hs.get_federation_http_client().agent = self.agent
        self.transactions = Transactions(hs)

    def _send(self, _: Any) -> "Deferred[Any]":
        self.ends.append(Deferred())
        self._ask()
        return self.ends[-1]

    def _request(self, *_: Any) -> "Deferred[Any]":
        self.answers.append(Deferred())
        return self.answers[-1]

    def _ask(self) -> None:
        self.agent.request(b"PUT", URI)

    def send(self) -> None:
        """Have a real transaction be under way."""
        sent = self.client.send_transaction(SimpleNamespace(destination=NAME))
        ensureDeferred(sent).addErrback(lambda _: None)

    def answer(self, code: int, error: Exception | None = None) -> None:
        """Have it be answered, and end if Synapse sends it only once."""
        self.answers[-1].callback(SimpleNamespace(code=code))
        if error is not None:
            self.ends[-1].errback(error)
        elif code < 300:
            self.ends[-1].callback({})

    def diagnose(self) -> Any:
        """Return the stage `authenticated`."""

        async def send_empty(_: str) -> bool:
            found = self.contacts.pop(0)
            if isinstance(found, Exception):
                raise found
            return bool(found)

        async def sleep_ms(ms: int) -> None:
            self.now_ms += ms
            self.left_ms -= ms
            if self.meanwhile:
                self.meanwhile.pop(0)()

        async def within(_: int, func: Any) -> Any:
            return await func()

        way: Any = SimpleNamespace(
            homeserver=SimpleNamespace(
                transactions=self.transactions,
                now_ms=lambda: self.now_ms,
                sleep_ms=sleep_ms,
            ),
            left_ms=lambda **_: self.left_ms,
            within=within,
        )
        requests: Any = SimpleNamespace(send_empty=send_empty)
        found: list[Any] = []
        ensureDeferred(check_authenticated(way, requests, NAME)).addCallback(
            found.append
        )
        return found[0]


TOO_LARGE = HttpResponseException(413, "No", b"{}")


@pytest.mark.parametrize(
    ("contact", "expected"),
    [
        (True, "ok None 200 False"),
        # It is so told by a server that has accepted our signature.
        (False, "ok None 429 False"),
        (HttpResponseException(401, "No", b"{}"), "failed rejected 401 False"),
        (
            RequestSendFailed(HttpResponseException(502, "", b""), can_retry=True),
            "failed http_error 502 False",
        ),
    ],
)
def test_contact(contact: Any, expected: str) -> None:
    """What comes of an empty transaction, where no other one is under way."""
    world = World()
    world.contacts = [contact]
    assert shown(world.diagnose()) == expected


def shown(stage: Any) -> str:
    findings = stage.findings
    assert isinstance(findings, AuthenticatedFindings)
    kind = stage.kind.value if stage.kind else None
    return f"{stage.outcome.value} {kind} {findings.status} {findings.is_real}"


@pytest.mark.parametrize(
    ("code", "error", "contacts", "expected"),
    [
        (200, None, [], "ok None 200 True"),
        (413, TOO_LARGE, [], "failed too_large 413 True"),
        # Synapse waits before it sends it once more: meanwhile there is room.
        (502, None, [True], "ok None 200 False"),
        (429, None, [True], "ok None 200 False"),
    ],
)
def test_real(
    code: int, error: Exception | None, contacts: list[bool], expected: str
) -> None:
    """While a real one is under way, that is the contact, and no other is made."""
    world = World()
    world.contacts = contacts
    world.send()
    world.meanwhile = [lambda: None, lambda: world.answer(code, error)]
    assert shown(world.diagnose()) == expected
    assert not world.contacts
    # Once more, and it is under way again.
    if contacts or code in (502, 429):
        world._ask()
        assert world.transactions.under_way(NAME) is not None


def test_not_yet_answered() -> None:
    """A real one that is not answered in time proves nothing; how long ago is told."""
    world = World()
    world.send()
    world.now_ms += 30_000
    stage = world.diagnose()
    assert shown(stage) == "warning other None True"
    assert stage.reason.value == "not_yet_answered"
    assert stage.failure.facts.took_ms > 40_000


def test_bug_in_an_observer() -> None:
    """What goes wrong in who is told of a transaction changes nothing of it."""
    world, told = World(), []
    world.transactions.observe(lambda _: 1 / 0)
    world.transactions.observe(lambda sent: told.append(sent.error))
    world.send()
    world.answer(200)
    assert told == [None]
    assert world.transactions.under_way(NAME) is None
