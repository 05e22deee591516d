# SPDX-License-Identifier: Apache-2.0
"""Says in words what came of a stage."""

from synapse_federation_admin import limits
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    ClockFindings,
    ConnectionsFindings,
    Diagnosis,
    KeysFindings,
    SkipReason,
    Stage,
    StageOutcome,
    StoredFindings,
    VersionFindings,
    WellKnownFindings,
)
from synapse_federation_admin.failures.text import message_of, shown_duration

_SIGNED = "The server accepts the signature of this homeserver"


def message_of_stage(stage: Stage, diagnosis: Diagnosis) -> str:
    """Return what came of a stage.

    Args:
        stage: The stage.
        diagnosis: That of which it is one.
    """
    if stage.skipped is SkipReason.ANOTHER_PROCESS:
        return f"{stage.skipped.value}: {', '.join(diagnosis.senders)}"
    if stage.skipped is not None:
        return str(stage.skipped.value)
    if stage.failure is None:
        return _in_order(stage, diagnosis.checked_ts)
    return _of_how_many(stage) + message_of(stage.failure)


def _in_order(stage: Stage, now_ms: int) -> str:
    """Return what there is to say of a stage in which nothing is wrong."""
    match stage.findings:
        case WellKnownFindings(m_server=str(name)):
            return f"Delegates to {name}"
        case WellKnownFindings():
            return "No such file: the server does not delegate"
        case AddressesFindings(targets=targets, targets_total=total):
            hosts = [f"{t.host} port {t.port}" for t in targets[: limits.TOLD_FINDINGS]]
            more = f" and {total - len(hosts)} more" if total > len(hosts) else ""
            return f"Requests go to {', '.join(hosts)}{more}"
        case ConnectionsFindings() as found:
            return f"TLS connections work: {_count(found)}"
        case VersionFindings(server_name=name, server_version=version):
            software = " ".join(filter(None, (name, version)))
            return f"The server runs {software or 'software without a name'}"
        case KeysFindings():
            return "The signing keys are valid"
        case AuthenticatedFindings(errcode=None):
            return _SIGNED
        case AuthenticatedFindings():
            return f"{_SIGNED}: it answers that there is no such alias"
        case ClockFindings():
            return "Their clock agrees with ours, to a minute"
        case StoredFindings(is_known=False):
            return "Synapse has never sent anything to the server"
        case StoredFindings() if stage.outcome is StageOutcome.OK:
            return "Synapse does not back off from the server"
        case StoredFindings() as found:
            return _stored(found, now_ms)
        case None:
            return "The server name is valid"


def _stored(findings: StoredFindings, now_ms: int) -> str:
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


def _of_how_many(stage: Stage) -> str:
    """Return how many hosts or addresses are bad, if it is some of them."""
    match stage.findings:
        case AddressesFindings(targets=targets):
            what, errors = "hosts cannot be used", [t.error for t in targets]
        case ConnectionsFindings() as found:
            what, errors = "addresses fail", [c.error for c in found.tried]
        case _:
            return ""
    bad = len([error for error in errors if error is not None])
    return f"{bad} of {len(errors)} {what}: " if bad < len(errors) else ""


def _count(findings: ConnectionsFindings) -> str:
    """Return how many addresses were tried, and of how many."""
    tried = len(findings.tried)
    total = len(findings.connections) + findings.not_contacted
    addresses = "1 address" if tried == 1 else f"{tried} addresses"
    return f"{addresses} of {total}" if findings.not_contacted else addresses
