# SPDX-License-Identifier: Apache-2.0
"""What exactly is wrong with a stage, by what the others tell: pure functions of them.

And to which of a server's addresses Synapse connects.
"""

from http import HTTPStatus

from synapse_federation_admin.diagnosis.findings import (
    ClockFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    StageOutcome,
)
from synapse_federation_admin.diagnosis.resolution import (
    AddressesFindings,
    WellKnownFindings,
)
from synapse_federation_admin.diagnosis.stages import (
    SkipReason,
    Stage,
    StageName,
    Stages,
)
from synapse_federation_admin.failures.kinds import (
    NOBODY_THERE,
    TLS_KINDS,
    Facts,
    Failure,
    FailureKind,
    Reason,
)

_NOT_CONNECTED = (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT)

# With these it may be another one that answers than the homeserver: unless the reason
# tells more.
_ODD = (FailureKind.HTTP_ERROR, FailureKind.INVALID_RESPONSE, FailureKind.GONE)
_BY_PLACE = (
    None,
    Reason.NOT_ROUTED,
    Reason.FEDERATION_LISTENER_MISSING,
    Reason.WEB_SITE,
)


# After how long without a connection the next address of a host is tried.
_NEXT_MS = 300

_LATE = (FailureKind.CONNECTION_TIMEOUT, FailureKind.RESPONSE_TIMEOUT)


def is_us(stages: Stages, own_name: str) -> Failure | None:
    """Return how the name leads to this homeserver itself; None if it does not."""
    keys, file = stages.seen(KeysFindings), stages.seen(WellKnownFindings)
    addresses = stages.seen(AddressesFindings)
    led_to = (file.delegated_to if file else None) or ""
    if led_to and (led_to.lower() == own_name.lower() or (keys and keys.is_us)):
        facts = Facts(host=led_to)
        return Failure(FailureKind.IS_US, Reason.DELEGATED_TO_US, facts)
    if keys is None or not keys.is_us:
        return None
    targets = addresses.targets if addresses else ()
    if addresses and addresses.services_total:
        facts = Facts(host=targets[0].host if targets else "")
        return Failure(FailureKind.IS_US, Reason.SERVICE_IS_US, facts)
    first = next((t for t in targets if t.addresses), None)
    facts = Facts()
    if first is not None:
        facts = Facts(address=first.addresses[0].address, port=first.port)
    return Failure(FailureKind.IS_US, Reason.ADDRESS_IS_OURS, facts)


def explained(stages: Stages, stage: Stage) -> Failure:
    """Return what is wrong with a stage, with what the others know of it."""
    failure = stage.failure or Failure(FailureKind.OTHER)
    if failure.kind in TLS_KINDS or stage.name is StageName.CLOCK:
        return failure
    reason = _reason_of(stages, stage, failure) or failure.reason
    clock = stages.seen(ClockFindings)
    file = stages.seen(WellKnownFindings)
    if reason is Reason.MAY_LACK_DELEGATION and file is not None:
        failure = failure.but(status=file.requests[-1].status)
    if reason is Reason.CLOCK and clock is not None:
        failure = failure.but(ahead_ms=clock.ahead_ms)
    if stage.name is StageName.WELL_KNOWN and failure.kind is FailureKind.OTHER:
        # By what Synapse has cached: what it meets there.
        authenticated = stages[StageName.AUTHENTICATED]
        if authenticated.outcome is StageOutcome.FAILED:
            failure = failure.but(cause=authenticated.failure)
    return failure.but(reason)


def is_only_send(stages: Stages, stage: Stage) -> bool:
    """Tell whether all is answered but a transaction."""
    version, keys = stages[StageName.VERSION], stages[StageName.KEYS]
    other = keys if version.outcome is StageOutcome.SKIPPED else version
    return (
        stage.name is StageName.AUTHENTICATED
        and stage.kind not in NOBODY_THERE
        and other.outcome is StageOutcome.OK
    )


def _reason_of(stages: Stages, stage: Stage, failure: Failure) -> Reason | None:
    """Return what exactly is wrong, if other stages tell it: the first that applies."""
    kind, name, unsigned = failure.kind, stage.name, (StageName.VERSION, StageName.KEYS)
    is_sent = is_only_send(stages, stage)
    # A real one may be large, and take long.
    is_empty = is_sent and not stages.sent.is_real
    is_late = kind is FailureKind.RESPONSE_TIMEOUT
    is_another = stages[StageName.CONNECTIONS].skipped is SkipReason.ANOTHER_PROCESS
    is_rejected = kind is FailureKind.REJECTED
    is_by_key = failure.reason in (None, Reason.SIGNATURE_REJECTED)
    # In these our key plays no part.
    are_rejected = {401, 403} & {stages.status(other) for other in unsigned}
    is_clock_off = stages[StageName.CLOCK].outcome is StageOutcome.WARNING
    keys, file = stages.seen(KeysFindings), stages.seen(WellKnownFindings)
    is_web_server = file and (file.requests[-1].status or 0) >= HTTPStatus.BAD_REQUEST
    rules = (
        (name is StageName.WELL_KNOWN, None),
        # It may be waiting for our answer, of which it needs the key.
        (is_empty and is_late and failure.reason is None, Reason.SIGNED_UNANSWERED),
        (is_empty and kind is FailureKind.TOO_LARGE, Reason.EMPTY_TOO_LARGE),
        (
            is_sent and kind in _ODD and failure.reason in _BY_PLACE,
            Reason.SIGNED_NOT_ROUTED,
        ),
        # It is none of the kinds of keys.
        (
            name is StageName.KEYS
            and keys
            and keys.error
            and kind is keys.error.kind
            and kind not in NOBODY_THERE,
            Reason.KEYS_REQUEST,
        ),
        # What else is asked for is answered.
        (
            name is StageName.VERSION
            and failure.reason is Reason.NOT_ROUTED
            and stage.outcome is StageOutcome.FAILED
            and stages[StageName.AUTHENTICATED].outcome is StageOutcome.OK,
            Reason.VERSION_ONLY,
        ),
        (is_late and is_another, Reason.ANOTHER_PROCESS),
        (is_rejected and are_rejected and is_by_key, Reason.UNSIGNED_TOO),
        (
            is_clock_off
            and ((is_rejected and is_by_key) or kind is FailureKind.KEYS_EXPIRED),
            Reason.CLOCK,
        ),
        # There is a web server, but neither delegation nor SRV records.
        (
            kind in _NOT_CONNECTED
            and name is StageName.CONNECTIONS
            and failure.reason is None
            and is_web_server
            and not stages.is_led_elsewhere,
            Reason.MAY_LACK_DELEGATION,
        ),
    )
    return next((reason for applies, reason in rules if applies), None)


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
    """Return to which of the addresses Synapse connects.

    SRV records are tried by their priority, each for 30 s. Of one host, Twisted tries
    the addresses in the order of the system's resolver, each 0.3 s after the one before
    (`twisted.internet.endpoints.HostnameEndpoint`). With what accepts a TCP connection
    first, Synapse stays, whatever TLS and HTTP come to there.
    """
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
