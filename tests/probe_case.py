# SPDX-License-Identifier: Apache-2.0
"""A homeserver whose destinations answer to contacts when and as a test says."""

from typing import Any
from unittest import mock

from module_case import ModuleTestCase
from twisted.internet.defer import Deferred

from synapse_federation_admin.homeserver.federation import Federation

V2 = "/_synapse/admin/v2/federation"

ANSWER = {"server": {"name": "Fake", "version": "1"}}

# A row as `add_destination` writes it: long failing, with much backoff left.
LONG_FAILING = (1000, 10**12, 500, 7)


class ProbeTestCase(ModuleTestCase):
    """`probes` are the contacts under way; the network is in the end-to-end tests."""

    def setUp(self) -> None:
        super().setUp()
        self.probes: list[tuple[str, Deferred[Any]]] = []
        # What is answered at once: a body, or an error; by name, and by default.
        self.answers: dict[str, Any] = {}
        patcher = mock.patch.object(Federation, "probe", self.probe)
        patcher.start()
        self.addCleanup(patcher.stop)

    def probe(self, destination: str, *, timeout_ms: int) -> "Deferred[Any]":
        """Stand in for the network."""
        answer: Deferred[Any] = Deferred()
        self.probes.append((destination, answer))
        if destination in self.answers:
            self.fire(answer, self.answers[destination])
        return answer

    @staticmethod
    def fire(answer: "Deferred[Any]", what: Any) -> None:
        if isinstance(what, Exception):
            answer.errback(what)
        else:
            answer.callback(what)

    @property
    def probed(self) -> list[str]:
        return [name for name, _ in self.probes]

    def answer(self, what: Any = ANSWER, which: int = -1) -> None:
        """End a contact that is under way."""
        self.fire(self.probes[which][1], what)
        self.pump(0.01)

    def row(self, name: str) -> tuple[Any, ...]:
        """Return a row as it is in the table."""
        return self.get_success(
            self.store.db_pool.simple_select_one(
                "destinations",
                {"destination": name},
                (
                    "retry_last_ts",
                    "retry_interval",
                    "failure_ts",
                    "last_successful_stream_ordering",
                ),
            )
        )

    def audit(self, query: str = "") -> list[dict[str, Any]]:
        """Return the audit, the newest first."""
        return self.get_json(f"{V2}/audit{query}")["entries"]
