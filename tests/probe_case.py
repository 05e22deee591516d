# SPDX-License-Identifier: Apache-2.0
"""A homeserver whose destinations answer to contacts when and as a test says."""

from collections.abc import Callable
from typing import Any

from module_case import FAILING, NAME, V2, ModuleTestCase, ResetTestCase, quote
from synapse.logging.context import make_deferred_yieldable
from twisted.internet.defer import Deferred

from synapse_federation_admin.homeserver.federation import Federation

ANSWER = {"server": {"name": "Fake", "version": "1"}}

# A row as `add_destination` writes it: long failing, with much backoff left.
LONG_FAILING = (1000, 10**12, 500, 7)

# So many chains of requests to the database there are at most in what is waited for.
STEPS = 20


class ProbeTestCase(ModuleTestCase):
    """`probes` are the contacts under way; the network is in the end-to-end tests."""

    def default_config(self) -> dict[str, Any]:
        return {**super().default_config(), "federation_sender_instances": ["sender1"]}

    def setUp(self) -> None:
        super().setUp()
        # It has begun once: it may run without this module.
        self.run_sql(
            "INSERT INTO federation_stream_position VALUES ('events', 1, 'sender1')"
        )
        self.probes: list[tuple[str, Deferred[Any]]] = []
        # Of the contacts after a reset: how long they may take, and whether they were
        # made in spite of a backoff.
        self.timeouts_ms: list[int] = []
        self.despite_backoff: list[bool] = []
        # What is answered at once: a body, or an error; by name, and by default.
        self.answers: dict[str, Any] = {}
        # What they say of their software, if they are asked.
        self.software: Any = ANSWER
        self.patch(Federation, "probe", self.probe)
        self.patch(Federation, "contact", self.contact)
        self.patch(Federation, "version", self.version)

    def probe(self, destination: str, *, timeout_ms: int) -> "Deferred[Any]":
        """Stand in for the network."""
        answer: Deferred[Any] = Deferred()
        self.probes.append((destination, answer))
        if destination in self.answers:
            self.fire(answer, self.answers[destination])
        # A real one leaves no log context to the reactor while it waits.
        return make_deferred_yieldable(answer)

    def contact(
        self,
        destination: str,
        *,
        timeout_ms: int,
        ignore_backoff: bool,
        is_ours: Callable[[Exception], bool],
    ) -> "Deferred[Any]":
        """Stand in for the network, of a contact after a reset."""
        self.timeouts_ms.append(timeout_ms)
        self.despite_backoff.append(ignore_backoff)
        return self.probe(destination, timeout_ms=timeout_ms)

    async def version(self, _destination: str, *, timeout_ms: int) -> Any:
        """Stand in for the network."""
        if isinstance(self.software, Exception):
            raise self.software
        return self.software

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

    def reconnect(self, name: str = NAME, *, wait: bool = False, **body: Any) -> Any:
        """Ask, and let the contact begin."""
        channel = self.ask(
            "POST",
            f"{V2}/destinations/{quote(name, safe='')}/reconnect",
            content=body,
            await_result=wait,
        )
        self.pump(0.0001)
        return channel

    def take(self, name: str) -> None:
        """Have a sender deliver the to-device messages that wait for a destination."""
        self.run_sql(
            f"DELETE FROM device_federation_outbox WHERE destination = '{name}'"
        )
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


class ContactTestCase(ProbeTestCase, ResetTestCase):
    """Resets of a destination, with a contact."""

    config: dict[str, Any] = {}

    def setUp(self) -> None:
        super().setUp()
        self.add_destination(NAME, *FAILING)

    def reset(self, name: str = NAME, **kwargs: Any) -> Any:
        """Reset, and let the contact begin."""
        channel = super().reset(name, **kwargs)
        self.assertEqual(channel.code, 200, channel.result)
        self.wait(0.05)
        return channel

    def wait(self, seconds: float) -> None:
        """Let time pass, in steps in which background processes get on."""
        self.reactor.pump([seconds / STEPS] * STEPS)

    def fail(self, failure_ts: int, name: str = NAME) -> None:
        """Have Synapse store a failure, as its retry limiter does it."""
        self.store_failure(name, failure_ts)

    def recover(self) -> None:
        """Have Synapse store that it got through, as its retry limiter does it."""
        self.get_success(self.store.set_destination_retry_timings(NAME, None, 0, 0))

    def deliver(self, stream_ordering: int) -> None:
        """Have Synapse store that an event was delivered."""
        self.get_success(
            self.store.set_destination_last_successful_stream_ordering(
                NAME, stream_ordering
            )
        )
