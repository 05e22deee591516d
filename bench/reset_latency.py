# SPDX-License-Identifier: Apache-2.0
"""Measure how soon Synapse tries a destination again after reset_connection.

Runs stock Synapse and Synapse with the module, on one process and with federation
senders on workers, and prints a table in Markdown: seconds from the answer of
`reset_connection` on the main process to the first request at the remote server, and to
the arrival of the to-device message that waits for it; "-" is not within 120 s.

    tox -e bench
"""

import importlib.metadata
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from synapse_federation_admin.playground.certificates import CertificateAuthority
from synapse_federation_admin.playground.client import MatrixClient
from synapse_federation_admin.playground.processes import WaitTimeoutError, wait_until
from synapse_federation_admin.playground.remote import (
    Behaviour,
    MessageKind,
    RemoteServer,
)
from synapse_federation_admin.playground.synapse import SynapseServer

WAIT_S = 120
REPETITIONS = 5


def main() -> None:
    """Measure and print."""
    print(f"Synapse {importlib.metadata.version('matrix-synapse')}\n")
    print(
        "| | something waits: first request | it arrives "
        "| nothing waits: first request |"
    )
    print("|---|---|---|---|")
    configs: tuple[dict[str, object] | None, ...] = (None, {})
    for workers in (False, True):
        for module in configs:
            row = measure(workers, module)
            name = "with the module" if module is not None else "stock"
            layout = "federation senders" if workers else "one process"
            print(f"| {layout}, {name} | {' | '.join(row)} |", flush=True)


def measure(workers: bool, module: dict[str, object] | None) -> list[str]:
    """Return the three figures for one homeserver, as text."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates = CertificateAuthority(folder)
        with SynapseServer(
            folder / "synapse", certificates, workers=workers, module_config=module
        ) as synapse:
            client = synapse.client(synapse.create_user("admin", admin=True))
            # Stock takes its time: once is enough where it takes a minute.
            repetitions = REPETITIONS if module is not None or not workers else 1
            queued = [
                attempt(client, certificates, waits=True) for _ in range(repetitions)
            ]
            empty, _ = attempt(client, certificates, waits=False)
    return [
        figure([request for request, _ in queued]),
        figure([message for _, message in queued]),
        figure([empty]),
    ]


def attempt(
    client: MatrixClient, certificates: CertificateAuthority, *, waits: bool
) -> tuple[float | None, float | None]:
    """Measure for a server: its first request, and the message, if one waits for it."""
    with RemoteServer("127.0.0.60", certificates) as remote:
        remote.switch(Behaviour.DOWN)
        user, message = f"@x:{remote.server_name}", None
        if waits:
            client.send_to_device(user, "waiting")
        else:
            client.query_keys(user)
        reset_when_up(client, remote)
        answered = time.monotonic()
        request = seconds(answered, lambda: remote.wait_for_request(0, WAIT_S))
        if waits:
            kind = MessageKind.TO_DEVICE
            message = seconds(
                answered, lambda: remote.wait_for_message(kind, "waiting", WAIT_S)
            )
    return request, message


def reset_when_up(client: MatrixClient, remote: RemoteServer) -> None:
    """Wait for the backoff, bring the server up, and reset its connection."""

    def backing_off() -> bool:
        rows = client.destinations(destination=remote.server_name)["destinations"]
        return any(row["retry_last_ts"] for row in rows)

    wait_until(backing_off, "Synapse to back off", 60)
    remote.switch(Behaviour.HEALTHY)
    client.reset_connection(remote.server_name)


def seconds(since: float, wait: Callable[[], Any]) -> float | None:
    """Return after how long something came, or None if it never did."""
    try:
        return float(wait().monotonic - since)
    except WaitTimeoutError:
        return None


def figure(values: list[float | None]) -> str:
    """Write the median of some seconds."""
    if None in values:
        return "-"
    ordered = sorted(value for value in values if value is not None)
    # A request may arrive before the answer does.
    return f"{max(0.0, ordered[len(ordered) // 2]):.3f} s"


if __name__ == "__main__":
    main()
