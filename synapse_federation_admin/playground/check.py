# SPDX-License-Identifier: Apache-2.0
"""The main job, done by itself: find what fails, repair it, and see it arrive."""

import time
from collections.abc import Callable

from attrs import frozen

from synapse_federation_admin.playground.client import Json
from synapse_federation_admin.playground.processes import PlaygroundError, wait_until
from synapse_federation_admin.playground.remote import Behaviour, MessageKind
from synapse_federation_admin.playground.world import (
    WAITING_MESSAGE,
    WAITING_TO_DEVICE,
    Playground,
)

# Stock Synapse with federation senders on workers needs about a minute.
_ARRIVAL_TIMEOUT_S = 90


@frozen
class CheckResult:
    """What the main job has shown. It exists only if all of it happened."""

    destinations: list[Json]
    """All destinations before the reset, as the API gave them."""
    failing: list[Json]
    """Those of them that were failing."""
    repaired: str
    """The server name of the server that was down and whose connection was reset."""
    first_contact_s: float
    """Seconds from the reset's answer until Synapse connected; may be negative."""
    pdu_s: float
    """Seconds from the reset's answer until the waiting event was there."""
    to_device_s: float
    """Seconds from the reset's answer until the waiting to-device message was there."""
    before: Json
    """The destination before the reset."""
    after: Json
    """The destination after the messages had arrived."""


def check(
    playground: Playground, show: Callable[[list[Json]], None] = lambda _: None
) -> CheckResult:
    """Do the main job on a prepared playground.

    Args:
        playground: started and prepared.
        show: is handed the failing destinations, as the API gave them.

    Raises:
        PlaygroundError: a part of it did not happen; the text says which.
    """
    client, progress = playground.client, playground.progress
    remote = playground.remotes[Behaviour.DOWN]
    name = remote.server_name

    progress("Listing the destinations")
    destinations = playground.destinations()
    failing = [row for row in destinations if row["failure_ts"] is not None]
    found = {row["destination"] for row in failing}
    expected = {server.server_name for server in playground.failing}
    if found != expected:
        raise PlaygroundError(
            f"Failing should be {sorted(expected)}; the API says {sorted(found)}"
        )
    show(failing)
    before = client.destination(name)
    if any(message.has(WAITING_MESSAGE) for message in remote.messages):
        raise PlaygroundError(f"{name} got its message although it was down")

    progress(f"Bringing {name} up and resetting its connection")
    brought_up = time.monotonic()
    remote.switch(Behaviour.HEALTHY)
    client.reset_connection(name)
    answered = time.monotonic()
    _require_cleared(client.destination(name))

    progress("Waiting until what was waiting for it arrives")
    pdu = remote.wait_for_message(MessageKind.PDU, WAITING_MESSAGE, _ARRIVAL_TIMEOUT_S)
    to_device = remote.wait_for_message(
        MessageKind.TO_DEVICE, WAITING_TO_DEVICE, _ARRIVAL_TIMEOUT_S
    )

    progress("Reading the destination again")

    def delivered() -> Json | None:
        # Synapse notes what it has delivered after the remote's answer.
        row = client.destination(name)
        old = before["last_successful_stream_ordering"]
        return row if row["last_successful_stream_ordering"] > old else None

    after = wait_until(delivered, f"Synapse to note the delivery to {name}", 30)
    _require_cleared(after)
    contact = remote.wait_for_connection(brought_up, _ARRIVAL_TIMEOUT_S)
    return CheckResult(
        destinations=destinations,
        failing=failing,
        repaired=name,
        first_contact_s=contact.monotonic - answered,
        pdu_s=pdu.monotonic - answered,
        to_device_s=to_device.monotonic - answered,
        before=before,
        after=after,
    )


def _require_cleared(row: Json) -> None:
    timings = (row["retry_last_ts"], row["retry_interval"], row["failure_ts"])
    if timings != (0, 0, None):
        raise PlaygroundError(f"The reset has not cleared the retry timings: {row}")
