# SPDX-License-Identifier: Apache-2.0
"""The contact of a diagnosis, beside the real transactions of this process."""

from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from synapse.api.errors import HttpResponseException, RequestSendFailed
from twisted.internet.defer import Deferred, ensureDeferred

from synapse_federation_admin.diagnosis.requests import check_authenticated
from synapse_federation_admin.homeserver.transactions import Transaction, Transactions

NAME = "a.example"
SEND = b"matrix-federation://a.example/_matrix/federation/v1/send/1"
REFUSED = HttpResponseException(413, "No", b"{}")
DOWN = RequestSendFailed(HttpResponseException(502, "", b""), can_retry=True)


class World:
    """A process that sends to `NAME`, and makes a diagnosis of it."""

    def __init__(self, contact: Any = None) -> None:
        """Say what comes of an empty transaction, if one is sent."""
        self.contact = contact
        self.now_ms, self.left_ms = 1000, 20_000
        self.end: Deferred[Any] = Deferred()
        self.answer: Deferred[Any] = Deferred()
        # What happens while a diagnosis waits.
        self.meanwhile: list[Any] = []
        self.agent = SimpleNamespace(request=lambda *_, **__: self.answer)
        self.client = SimpleNamespace(send_transaction=self._send)
        hs: Any = mock.Mock()
        hs.get_clock().time_msec = lambda: self.now_ms
        hs.get_federation_transport_client = lambda: self.client
        hs.get_federation_http_client().agent = self.agent
        self.transactions = Transactions(hs)

    def _send(self, _: Any) -> "Deferred[Any]":
        body = SimpleNamespace(length=9)
        self.agent.request(b"PUT", SEND, bodyProducer=body)
        return self.end

    def send(self) -> None:
        """Have a real transaction be under way."""
        sent = self.client.send_transaction(SimpleNamespace(destination=NAME))
        ensureDeferred(sent).addErrback(lambda _: None)

    def answered(self, code: int) -> None:
        """Have it be answered, and end if Synapse sends it only once."""
        self.answer.callback(SimpleNamespace(code=code))
        if code in (200, 413):
            self.end.callback({}) if code == 200 else self.end.errback(REFUSED)

    async def sleep_ms(self, ms: int) -> None:
        self.now_ms, self.left_ms = self.now_ms + ms, self.left_ms - ms
        if self.meanwhile:
            self.meanwhile.pop(0)()

    async def send_empty(self, _: str, **__: object) -> Any:
        if isinstance(self.contact, Exception):
            raise self.contact
        return self.contact

    def diagnosed(self) -> str:
        """Return what is told: outcome, kind, status, and whether it is real."""

        async def within(_: int, func: Any) -> Any:
            return await func()

        way: Any = SimpleNamespace(
            homeserver=SimpleNamespace(
                transactions=self.transactions,
                now_ms=lambda: self.now_ms,
                sleep_ms=self.sleep_ms,
            ),
            left_ms=lambda reserve=0: self.left_ms - int(20_000 * reserve),
            outbound=SimpleNamespace(send_empty=self.send_empty),
            within=within,
        )
        found: list[Any] = []
        asked = ensureDeferred(check_authenticated(way, NAME, None))
        asked.addCallback(found.append)
        (stage,) = found
        seen, kind = stage.findings, stage.kind.value if stage.kind else None
        return f"{stage.outcome.value} {kind} {seen.status} {seen.is_real}"


@pytest.mark.parametrize(
    ("contact", "expected"),
    [
        (True, "ok None 200 False"),
        # It is so told by a server that has accepted our signature.
        (False, "ok None 429 False"),
        (HttpResponseException(401, "No", b"{}"), "failed rejected 401 False"),
        (DOWN, "failed http_error 502 False"),
    ],
)
def test_contact(contact: Any, expected: str) -> None:
    """What comes of an empty transaction, where no other one is under way."""
    assert World(contact).diagnosed() == expected


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (200, "ok None 200 True"),
        (413, "failed too_large 413 True"),
        # Synapse waits before it sends it once more: meanwhile there is room.
        (502, "failed http_error 502 False"),
        (429, "failed http_error 502 False"),
    ],
)
def test_real(code: int, expected: str) -> None:
    """While a real one is under way, that is the contact, and no other is made."""
    world = World(DOWN)
    ended: list[Transaction] = []
    world.transactions.observe(ended.append)
    world.send()
    world.meanwhile = [lambda: None, lambda: world.answered(code)]
    assert world.diagnosed() == expected
    assert world.transactions.under_way(NAME) is None
    assert [sent.bytes for sent in ended] == ([9] if code in (200, 413) else [])
    # Once more, if it has not ended.
    world.answer = Deferred()
    world.agent.request(b"PUT", SEND)
    assert (world.transactions.under_way(NAME) is None) is (code in (200, 413))


def test_not_yet_answered() -> None:
    """A real one that is not answered in time proves nothing, nor would a hasty one."""
    world = World()
    world.send()
    world.meanwhile = [lambda: None] * 365 + [lambda: world.answered(502)]
    assert world.diagnosed() == "warning other None True"


def test_not_as_expected() -> None:
    """A transaction of which nothing can be told is sent all the same."""
    world = World()
    sent = ensureDeferred(world.client.send_transaction(SimpleNamespace()))
    world.end.callback({"pdus": {}})
    assert sent.result == {"pdus": {}}
