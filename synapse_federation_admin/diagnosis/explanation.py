# SPDX-License-Identifier: Apache-2.0
"""Explains what is wrong with a server, with what the stages know of it."""

from collections.abc import Mapping
from http import HTTPStatus

from synapse_federation_admin.diagnosis.addresses import ALLOWED_NONE
from synapse_federation_admin.diagnosis.clock import shown_duration
from synapse_federation_admin.diagnosis.findings import (
    AddressesFindings,
    AuthenticatedFindings,
    Connection,
    ConnectionsFindings,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
    WellKnownFindings,
)
from synapse_federation_admin.diagnosis.keys import ANOTHER_KEY
from synapse_federation_admin.diagnosis.sentences import ADVICE, EXPLANATIONS
from synapse_federation_admin.failures.classify import describe
from synapse_federation_admin.failures.kinds import (
    TLS_KINDS,
    Failure,
    FailureKind,
    Reason,
)
from synapse_federation_admin.failures.text import because_of, summary_of

Stages = Mapping[StageName, Stage]


def explain(stages: Stages, stage: Stage, kind: FailureKind) -> tuple[str, str]:
    """Return what is the matter, with what is known of it, and what to do."""
    explanation, advice = EXPLANATIONS[kind], ADVICE[kind]
    findings = stage.findings
    if kind in TLS_KINDS:
        return _told_tls(stages, stage, kind)
    if isinstance(findings, WellKnownFindings):
        return _told_well_known(stages, stage, findings, kind)
    if isinstance(findings, AuthenticatedFindings) and is_up(stages):
        if kind not in (FailureKind.REJECTED, FailureKind.RATE_LIMITED):
            return _told_signed(findings, kind)
    elif isinstance(findings, KeysFindings):
        return _told_keys(stage, findings, kind)
    if kind is FailureKind.RESPONSE_TIMEOUT and _is_restricted(stages):
        explanation = (
            "No answer comes in time by way of the process that goes out to other "
            "servers; whether they take connections is not known here"
        )
        return explanation, advice
    if kind is FailureKind.REJECTED and _rejects_all(stages):
        explanation = "They reject requests that are not even signed"
        advice = (
            "Ask them: something before their homeserver, such as a firewall, shuts "
            "this host out."
        )
        return explanation, advice
    if any(c.address is None for c in _failed_connections(stages)):
        return _told_proxy(stage, kind)
    if kind in (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT):
        where = _places(stages, kind)
        if where:
            explanation = f"{explanation} at {where}"
        if _may_lack_delegation(stages):
            advice += (
                " A web server answers on port 443, but has no "
                "/.well-known/matrix/server: perhaps that is missing."
            )
        return explanation, advice
    if kind is FailureKind.UNREACHABLE and stage.name is StageName.ADDRESSES:
        explanation = stage.detail[:1].upper() + stage.detail[1:]
        return explanation, "Ask them; or have it forgotten."
    if kind is FailureKind.IP_BLOCKED and ALLOWED_NONE in stage.detail:
        advice = advice.replace(", or add it to ip_range_whitelist,", "")
    if stage.detail:
        explanation = f"{explanation}: {stage.detail}"
    return explanation, advice


def _is_restricted(stages: Stages) -> bool:
    """Tell whether other processes go out in this one's stead."""
    connections = stages[StageName.CONNECTIONS]
    return (
        connections.outcome is StageOutcome.SKIPPED
        and "outbound_federation_restricted_to" in connections.message
    )


def _rejects_all(stages: Stages) -> bool:
    """Tell whether requests are rejected in which our key plays no part."""
    return any(
        getattr(stages[name].findings, "status", None) in (401, 403)
        for name in (StageName.VERSION, StageName.KEYS)
    )


def _told_proxy(stage: Stage, kind: FailureKind) -> tuple[str, str]:
    """Return what it means that a connection through our proxy fails."""
    explanation = "This homeserver's own proxy does not connect to this server"
    if kind is not FailureKind.OTHER:
        explanation += f": {summary_of(describe(kind, stage.detail))}"
    advice = (
        "Look at https_proxy and no_proxy, and at the log of that proxy. If it "
        "connects to other servers, tell them."
    )
    return explanation, advice


def _told_tls(stages: Stages, stage: Stage, kind: FailureKind) -> tuple[str, str]:
    explanation, advice = EXPLANATIONS[kind], ADVICE[kind]
    connection = _bad_connection(stages, kind)
    tls = connection.tls if connection else None
    if connection is None or tls is None or tls.certificate is None:
        if stage.detail:
            explanation = f"{explanation}: {stage.detail}"
        return explanation, advice
    certificate = tls.certificate
    problem = next(problem for problem in tls.problems if problem.kind is kind)
    name = connection.sni or connection.host
    if kind is FailureKind.TLS_EXPIRED:
        if certificate.left_ms < 0:
            ago = shown_duration(-certificate.left_ms)
            explanation = f"Their certificate expired {ago} ago"
        else:
            explanation = "A certificate in the chain that they send has expired"
    elif kind is FailureKind.TLS_WRONG_NAME:
        names = ", ".join(certificate.names[:3])
        explanation = (
            f"Their certificate is for {names}, and not for {name}"
            if names
            else f"Their certificate has no subjectAltName, so it is not for {name}"
        )
        advice = advice.replace(
            "for which name the certificate has to be",
            f"that the certificate has to be for {name}",
        )
    elif kind is FailureKind.TLS_UNTRUSTED and not _is_about_authority(problem):
        explanation = (
            f"This homeserver does not accept their certificate: {because_of(problem)}"
        )
        advice = "Tell them to get another one."
    others = [
        EXPLANATIONS[other.kind].removeprefix("Their certificate ")
        for other in tls.problems
        if other.kind is not kind
    ]
    if others and explanation.startswith("A certificate"):
        others[0] = f"theirs {others[0]}"
    return " and ".join([explanation, *others]), advice


def _is_about_authority(problem: Failure) -> bool:
    """Tell whether a certificate is not trusted because of who has issued it."""
    return problem.reason in (
        None,
        Reason.SELF_SIGNED,
        Reason.UNKNOWN_AUTHORITY,
        Reason.MISSING_INTERMEDIATE,
    )


def _told_well_known(
    stages: Stages, stage: Stage, findings: WellKnownFindings, kind: FailureKind
) -> tuple[str, str]:
    cached = findings.cached
    if kind is FailureKind.OTHER and cached is not None:
        explanation = (
            "Synapse still uses an older answer about where this server is, "
            f"{cached.m_server or 'that it does not delegate'}"
        )
        advice = (
            "Wait until what is cached expires (cached.expires_ts), or restart "
            "Synapse, with its workers."
        )
        failed = stages[StageName.AUTHENTICATED]
        if failed.outcome is StageOutcome.FAILED and failed.kind is not None:
            what = EXPLANATIONS[failed.kind]
            explanation += f", and there it fails: {what[:1].lower()}{what[1:]}"
        return explanation, advice
    explanation, advice = EXPLANATIONS[kind], ADVICE[kind]
    last = findings.requests[-1]
    if last.error is not None and last.error.kind is FailureKind.IP_BLOCKED:
        advice = f"It leads to a blocked address. {ADVICE[FailureKind.IP_BLOCKED]}"
    if stage.detail:
        explanation = f"{explanation}: {stage.detail}"
    return explanation, advice


def _told_signed(findings: AuthenticatedFindings, kind: FailureKind) -> tuple[str, str]:
    """Return what it means that only a signed request is not answered well."""
    said = " ".join(
        filter(None, (f"HTTP {findings.status}", findings.errcode))
        if findings.status
        else [summary_of(describe(kind))]
    )
    if kind is FailureKind.RESPONSE_TIMEOUT:
        # Their server may be waiting for ours, of which it needs the key.
        advice = ADVICE[FailureKind.REJECTED]
    elif findings.errcode:
        advice = "Tell them: the log of their homeserver has the reason."
    else:
        advice = (
            "Tell them: perhaps their reverse proxy passes only a part of /_matrix on "
            "to the homeserver."
        )
    return (
        "They answer other requests, but not one that is signed by this homeserver "
        f"({said})",
        advice,
    )


def _told_keys(
    stage: Stage, findings: KeysFindings, kind: FailureKind
) -> tuple[str, str]:
    explanation, advice = EXPLANATIONS[kind], ADVICE[kind]
    if findings.error is not None and kind is findings.error.kind:
        # It is none of the kinds of keys.
        what = summary_of(describe(kind))
        explanation = f"The request for their keys fails: {what}"
        if kind is not FailureKind.RATE_LIMITED:
            advice = ADVICE[FailureKind.KEYS_MISSING]
    elif stage.detail:
        explanation = f"{explanation}: {stage.detail}"
    if stage.outcome is StageOutcome.WARNING:
        explanation = f"Synapse accepts their keys, but {stage.detail}"
        advice = "Tell them what is wrong with the answer of /_matrix/key/v2/server."
    if "not for" in stage.detail and findings.server_name:
        advice = (
            f"The server there calls itself {findings.server_name}: use that name if "
            f"it is theirs, or tell them. {advice}"
        )
    if ANOTHER_KEY in stage.detail:
        explanation = "They have another key than Synapse has stored under the same ID"
        advice = (
            "Ask them: either the server was set up anew, with a new key under an old "
            "ID, or the domain has another owner now."
        )
    return explanation, advice


def _may_lack_delegation(stages: Stages) -> bool:
    """Tell whether there is a web server, but neither delegation nor SRV records."""
    well_known = stages[StageName.WELL_KNOWN].findings
    addresses = stages[StageName.ADDRESSES].findings
    return (
        isinstance(well_known, WellKnownFindings)
        and well_known.delegated_to is None
        and (well_known.requests[-1].status or 0) >= HTTPStatus.BAD_REQUEST
        and isinstance(addresses, AddressesFindings)
        and not addresses.services_total
    )


def _bad_connection(stages: Stages, kind: FailureKind) -> Connection | None:
    findings = stages[StageName.CONNECTIONS].findings
    if isinstance(findings, ConnectionsFindings):
        for connection in findings.connections:
            if connection.tls is not None and any(
                problem.kind is kind for problem in connection.tls.problems
            ):
                return connection
    return None


def _failed_connections(stages: Stages) -> list[Connection]:
    findings = stages[StageName.CONNECTIONS].findings
    if not isinstance(findings, ConnectionsFindings):
        return []
    return [c for c in findings.connections if c.outcome is StageOutcome.FAILED]


def _places(stages: Stages, kind: FailureKind) -> str:
    """Return where there is a fault, in words."""
    failed = _failed_connections(stages)
    same = [
        connection.place
        for connection in failed
        if connection.error is None or connection.error.kind is kind
    ]
    if not same:
        return ""
    places = " and ".join(same[:2])
    if len(same) > 2:
        places += f" and {len(same) - 2} other addresses"
    if len(same) < len(failed):
        places += "; other addresses fail otherwise"
    return places


def is_up(stages: Stages) -> bool:
    """Tell whether a homeserver answers there."""
    return StageOutcome.OK in (
        stages[StageName.VERSION].outcome,
        stages[StageName.KEYS].outcome,
    )
