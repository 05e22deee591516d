# SPDX-License-Identifier: Apache-2.0
"""Says in words what came of a stage."""

from collections.abc import Callable, Sequence

from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    ClockFindings,
    Connection,
    ConnectionsFindings,
    Diagnosis,
    SkipReason,
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
    VersionFindings,
    WellKnownFindings,
)
from synapse_federation_admin.failures.kinds import Failure
from synapse_federation_admin.failures.text import (
    message_of,
    shown_duration,
    summary_of,
)

# How many hosts, and how many faults, are told.
_MAX_TOLD = 3

_SKIPPED = {
    SkipReason.NAME_IS_ADDRESS: "Not asked: the name is an IP address",
    SkipReason.NAME_HAS_PORT: "Not asked: the name has a port",
    SkipReason.INVALID_NAME: "Not tried: nothing is sent to this name",
    SkipReason.INVALID_DELEGATION: "Not tried: m.server is not a server name",
    SkipReason.NO_ADDRESS: "Not tried: there is no address to connect to",
    SkipReason.NO_CONNECTION: "Not tried: there is no connection",
    SkipReason.ANOTHER_PROCESS: (
        "Not tried: outbound_federation_restricted_to has other processes go out"
    ),
    SkipReason.NOT_REACHED: "Not told: the server was not reached, see before",
    SkipReason.NO_DATE: "Not known: no response of the server has a Date",
    SkipReason.DATABASE_SLOW: "Not known: the database does not answer in time",
    SkipReason.DATABASE_FAILED: "Not known: the database cannot be read",
}

_SIGNED = "The server accepts the signature of this homeserver"


def message_of_stage(stage: Stage, diagnosis: Diagnosis) -> str:
    """Return what came of a stage.

    Args:
        stage: The stage.
        diagnosis: That of which it is one.
    """
    if stage.skipped is SkipReason.ANOTHER_PROCESS:
        return f"{_SKIPPED[stage.skipped]}: {', '.join(diagnosis.senders)}"
    if stage.skipped is not None:
        return _SKIPPED[stage.skipped]
    if stage.name is StageName.STORED and stage.failure is None:
        return _stored(stage, diagnosis.checked_ts)
    if stage.failure is None:
        return _OK[stage.name](stage)
    message = message_of(stage.failure)
    if stage.outcome is StageOutcome.WARNING:
        message = _of_some(stage) or message
    return message + _cached(stage)


def _name(_: Stage) -> str:
    return "The server name is valid"


def _well_known(stage: Stage) -> str:
    findings = stage.findings
    if isinstance(findings, WellKnownFindings) and findings.m_server is not None:
        return f"Delegates to {findings.m_server}"
    return "No such file: the server does not delegate"


def _addresses(stage: Stage) -> str:
    findings = stage.findings
    if not isinstance(findings, AddressesFindings):
        return ""
    hosts = [f"{t.host} port {t.port}" for t in findings.targets[:_MAX_TOLD]]
    more = findings.targets_total - len(hosts)
    return f"Requests go to {', '.join(hosts)}" + (f" and {more} more" if more else "")


def _connections(stage: Stage) -> str:
    findings = stage.findings
    if not isinstance(findings, ConnectionsFindings):
        return ""
    tried = [c for c in findings.connections if c.outcome is not StageOutcome.SKIPPED]
    return f"TLS connections work: {_count(len(tried), findings)}"


def _version(stage: Stage) -> str:
    findings = stage.findings
    if not isinstance(findings, VersionFindings):
        return ""
    software = filter(None, (findings.server_name, findings.server_version))
    return f"The server runs {' '.join(software) or 'software without a name'}"


def _keys(_: Stage) -> str:
    return "The signing keys are valid"


def _authenticated(stage: Stage) -> str:
    findings = stage.findings
    if isinstance(findings, AuthenticatedFindings) and findings.errcode is not None:
        return f"{_SIGNED}: it answers that there is no such alias"
    return _SIGNED


def _clock(stage: Stage) -> str:
    findings = stage.findings
    if not isinstance(findings, ClockFindings) or not findings.ahead_ms:
        return "Their clock agrees with ours"
    direction = "ahead of" if findings.ahead_ms > 0 else "behind"
    return f"Their clock is {shown_duration(abs(findings.ahead_ms))} {direction} ours"


def _stored(stage: Stage, now_ms: int) -> str:
    findings = stage.findings
    if not isinstance(findings, StoredFindings) or not findings.is_known:
        return "Synapse has never sent anything to the server"
    if stage.outcome is StageOutcome.OK:
        return "Synapse does not back off from the server"
    since = "an unknown time"
    if findings.failing_since_ts:
        since = shown_duration(max(0, now_ms - findings.failing_since_ts))
    when = "when something is due"
    if findings.backoff_left_ms:
        when = f"in {shown_duration(findings.backoff_left_ms)}"
    message = f"Failing for {since}; Synapse retries {when}"
    if findings.reaches_us:
        message += "; the server reaches us meanwhile"
    return message


_OK: dict[StageName, Callable[[Stage], str]] = {
    StageName.NAME: _name,
    StageName.WELL_KNOWN: _well_known,
    StageName.ADDRESSES: _addresses,
    StageName.CONNECTIONS: _connections,
    StageName.VERSION: _version,
    StageName.KEYS: _keys,
    StageName.AUTHENTICATED: _authenticated,
    StageName.CLOCK: _clock,
}


def _of_some(stage: Stage) -> str | None:
    """Return that only some hosts or addresses are bad, if it is about those."""
    findings = stage.findings
    if isinstance(findings, AddressesFindings):
        bad = [(f"{t.host} port {t.port}", t.error) for t in findings.targets]
        return _told(bad, f"of {len(findings.targets)} hosts cannot be used")
    if isinstance(findings, ConnectionsFindings):
        tried = [
            c for c in findings.connections if c.outcome is not StageOutcome.SKIPPED
        ]
        count = _count(len(tried), findings)
        return _told([(_place(c), c.error) for c in tried], f"of {count} fail")
    return None


def _told(places: Sequence[tuple[str, Failure | None]], what: str) -> str:
    bad = [(place, error) for place, error in places if error is not None]
    faults = "; ".join(f"{p}: {summary_of(e)}" for p, e in bad[:_MAX_TOLD])
    return f"{len(bad)} {what}: {faults}"


def _place(connection: Connection) -> str:
    return f"{connection.address or connection.host} port {connection.port}"


def _count(tried: int, findings: ConnectionsFindings) -> str:
    """Return how many addresses were tried, and of how many."""
    total = len(findings.connections) + findings.not_contacted
    addresses = "1 address" if tried == 1 else f"{tried} addresses"
    return f"{addresses} of {total}" if findings.not_contacted else addresses


def _cached(stage: Stage) -> str:
    """Return what Synapse goes by, if something is wrong with the file itself."""
    findings = stage.findings
    if not isinstance(findings, WellKnownFindings) or findings.cached is None:
        return ""
    used = findings.cached.m_server
    if not findings.cached.differs or used is None or findings.is_valid is not None:
        return ""
    return f". Synapse still uses what it has cached: {used}"
