# SPDX-License-Identifier: Apache-2.0
"""To which of a server's addresses Synapse connects: pure functions of the stages.

SRV records are tried by their priority, each for 30 s. Of one host, Twisted tries the
addresses in the order of the system's resolver, each 0.3 s after the one before
(`twisted.internet.endpoints.HostnameEndpoint`). With what accepts a TCP connection
first, Synapse stays, whatever TLS and HTTP come to there.
"""

from synapse_federation_admin.diagnosis.findings import (
    Connection,
    ConnectionsFindings,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.resolution import (
    AddressesFindings,
    WellKnownFindings,
)
from synapse_federation_admin.diagnosis.stages import Stages
from synapse_federation_admin.failures.kinds import FailureKind

# After how long without a connection the next address of a host is tried.
_NEXT_MS = 300

_LATE = (FailureKind.CONNECTION_TIMEOUT, FailureKind.RESPONSE_TIMEOUT)


def is_chosen_bad(stages: Stages) -> bool:
    """Tell whether all addresses are bad to which Synapse may connect first.

    Then it is no luck which of them a request meets. Of several of a host and a family,
    the resolver gives now this one first, now that one.
    """
    chosen = _chosen(stages)
    return bool(chosen) and all(
        c.outcome is StageOutcome.FAILED or (c.version and c.version.error)
        for c in chosen
    )


def _chosen(stages: Stages) -> list[Connection]:
    found, addresses = stages.seen(ConnectionsFindings), stages.seen(AddressesFindings)
    connected = [c for c in found.tried if c.connect_ms is not None] if found else []
    priorities: dict[tuple[str, int], int] = {}
    for service in addresses.services if addresses else ():
        priorities.setdefault((service.target, service.port), service.priority)

    def priority(connection: Connection) -> int:
        return priorities.get((connection.host, connection.port), 0)

    least = min(map(priority, connected), default=0)
    first: dict[str, bool] = {}
    chosen = []
    for connection in connected:
        is_ipv6 = ":" in (connection.address or "")
        is_quick = (connection.connect_ms or 0) < _NEXT_MS
        if priority(connection) > least or not is_quick:
            continue
        if first.setdefault(connection.host, is_ipv6) is is_ipv6:
            chosen.append(connection)
    return chosen


def is_waited_for(stages: Stages) -> bool:
    """Tell whether Synapse waits long for an address that does not answer.

    It does for a host of an SRV record that has no other address, and where it asks
    for the well-known file there.
    """
    found, file = stages.seen(ConnectionsFindings), stages.seen(WellKnownFindings)
    late = file.requests[-1].error if file and file.requests else None
    if late is not None and late.kind in _LATE:
        return True
    tried = found.tried if found else []
    answering = {c.host for c in tried if not (c.error and c.error.kind in _LATE)}
    return any(c.host not in answering for c in tried)
