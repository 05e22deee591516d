# SPDX-License-Identifier: Apache-2.0
"""A homeserver whose contacts with destinations end when and as a test says."""

from typing import Any
from unittest import mock

from module_case import FAILING, NAME, ResetTestCase
from synapse.logging.context import make_deferred_yieldable
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectError

from synapse_federation_admin.homeserver.federation import Federation


class ContactTestCase(ResetTestCase):
    """Resets with a contact. The network itself is in the end-to-end tests."""

    config: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()
        # The destination, whether its backoff was to be ignored, and the answer.
        self.contacts: list[tuple[str, bool, Deferred[Any]]] = []
        self.timeouts_ms: list[int] = []
        patcher = mock.patch.object(Federation, "contact", self.contact)
        patcher.start()
        self.addCleanup(patcher.stop)
        self.add_destination(NAME, *FAILING)

    def contact(
        self, destination: str, *, timeout_ms: int, ignore_backoff: bool
    ) -> "Deferred[Any]":
        """Stand in for the network: answers when the test says so."""
        self.timeouts_ms.append(timeout_ms)
        answer: Deferred[Any] = Deferred()
        self.contacts.append((destination, ignore_backoff, answer))
        # A real one leaves no log context to the reactor while it waits.
        return make_deferred_yieldable(answer)

    def reset(self, name: str = NAME, **kwargs: Any) -> Any:
        """Reset, and let the contact begin."""
        channel = super().reset(name, **kwargs)
        self.wait(0.05)
        return channel

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        self.pump(seconds / 100)

    def fail(self, failure_ts: int, name: str = NAME) -> None:
        """Have Synapse store a failure, as its retry limiter does it."""
        self.get_success(
            self.store.set_destination_retry_timings(
                name, failure_ts, failure_ts, 600_000
            )
        )

    def recover(self) -> None:
        """Have Synapse store that it got through, as its retry limiter does it."""
        self.get_success(self.store.set_destination_retry_timings(NAME, None, 0, 0))

    def deliver(self, stream_ordering: int, name: str = NAME) -> None:
        """Have Synapse store that an event was delivered."""
        self.get_success(
            self.store.set_destination_last_successful_stream_ordering(
                name, stream_ordering
            )
        )

    def answer(self, error: Exception | None = None, which: int = -1) -> None:
        """End the contact that is under way."""
        deferred = self.contacts[which][2]
        if error is None:
            deferred.callback({"server": {"name": "Fake", "version": "1"}})
        else:
            deferred.errback(error)
        self.wait(0.05)

    def reset_and_fail(self) -> None:
        """Reset what then turns out to be down."""
        self.assertEqual(self.reset().code, 200)
        self.fail(9_000)
        self.answer(ConnectError())
        self.wait(1)
