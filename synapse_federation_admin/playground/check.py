# SPDX-License-Identifier: Apache-2.0
"""The main job, done by itself: find what fails, repair it, and see it arrive."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from attrs import frozen

from synapse_federation_admin.playground.client import Json
from synapse_federation_admin.playground.console import check_console
from synapse_federation_admin.playground.processes import PlaygroundError, wait_until
from synapse_federation_admin.playground.remote import Behaviour, MessageKind
from synapse_federation_admin.playground.world import (
    WAITING_MESSAGE,
    WAITING_TO_DEVICE,
    Playground,
)

# As many as are under way in a process at a time.
_DIAGNOSES_AT_ONCE = 4

# What is to be found of servers that fail.
_KINDS = {
    Behaviour.DOWN: "connection_refused",
    Behaviour.EXPIRED_CERTIFICATE: "tls_expired",
    Behaviour.WRONG_NAME_CERTIFICATE: "tls_wrong_name",
    Behaviour.BAD_GATEWAY: "http_error",
    Behaviour.HANGING: "response_timeout",
    Behaviour.UNTRUSTED_CERTIFICATE: "tls_untrusted",
    Behaviour.PLAIN_HTTP: "tls_failed",
    Behaviour.FORBIDDEN: "rejected",
    Behaviour.TOO_LARGE: "too_large",
    Behaviour.RATE_LIMITED: "rate_limited",
    Behaviour.NOT_FOUND: "http_error",
    Behaviour.NO_NAME: "dns_not_found",
}

# It is written every three seconds.
_RECORDED_TIMEOUT_S = 15

# Stock Synapse with federation senders on workers needs about a minute.
_ARRIVAL_TIMEOUT_S = 90


@frozen
class CheckResult:
    """What the main job has shown. It exists only if all of it happened."""

    repaired: str
    """The server name of the server that was down and whose connection was reset."""
    first_contact_s: float
    """Seconds from the reset's answer until Synapse connected; may be negative."""
    pdu_s: float
    """Seconds from the reset's answer until the waiting event was there."""
    to_device_s: float
    """Seconds from the reset's answer until the waiting to-device message was there."""


def check(
    playground: Playground,
    show: Callable[[list[Json]], None] = lambda _: None,
    show_diagnoses: Callable[[list[Json]], None] = lambda _: None,
) -> CheckResult:
    """Do the main job on a prepared playground.

    Args:
        playground: started and prepared.
        show: is handed the failing destinations, as the API gave them.
        show_diagnoses: is handed a diagnosis of each.

    Raises:
        PlaygroundError: a part of it did not happen; the text says which.
    """
    client, progress = playground.client, playground.progress
    remote = playground.remotes[Behaviour.DOWN]
    name = remote.server_name

    progress("Listing the destinations")
    rows = playground.destinations()
    failing = [row for row in rows if row["failure_ts"] is not None]
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

    progress("Reading why real requests to them failed")
    wait_until(
        lambda: (
            playground.client.last_failure_kinds()
            == {
                server.server_name: _KINDS[server.behaviour]
                for server in playground.failing
            }
        ),
        "what real requests failed with to be recorded",
        _RECORDED_TIMEOUT_S,
    )

    progress("Opening the console")
    expired = playground.remotes[Behaviour.EXPIRED_CERTIFICATE]
    check_console(playground, expired, "Expired TLS certificate")

    progress("Asking why they fail")
    show_diagnoses(_diagnose(playground))

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

    what = f"Synapse to note the delivery to {name}"
    _require_cleared(wait_until(delivered, what, 30))
    # What has arrived has come by one.
    contact = next(at for at in remote.connections if at >= brought_up)
    return CheckResult(
        repaired=name,
        first_contact_s=contact - answered,
        pdu_s=pdu.monotonic - answered,
        to_device_s=to_device.monotonic - answered,
    )


def _diagnose(playground: Playground) -> list[Json]:
    """Ask why each failing server fails; the answers have to be right."""
    names = [server.server_name for server in playground.failing]
    with ThreadPoolExecutor(_DIAGNOSES_AT_ONCE) as pool:
        diagnoses = list(pool.map(playground.client.diagnose, names))
    for remote, diagnosis in zip(playground.failing, diagnoses, strict=True):
        expected = _KINDS[remote.behaviour]
        if diagnosis["kind"] != expected:
            raise PlaygroundError(
                f"{remote.server_name}: {remote.behaviour.value}: the diagnosis should "
                f"be {expected}; the API says {diagnosis['kind']}"
            )
    return diagnoses


def _require_cleared(row: Json) -> None:
    timings = (row["retry_last_ts"], row["retry_interval"], row["failure_ts"])
    if timings != (0, 0, None):
        raise PlaygroundError(f"The reset has not cleared the retry timings: {row}")
