# SPDX-License-Identifier: Apache-2.0
"""What the stages of a diagnosis mean, and what to do: pure functions of them."""

from collections.abc import Mapping

from synapse_federation_admin.diagnosis.clock import shown_duration
from synapse_federation_admin.models import (
    AddressesFindings,
    ClockFindings,
    Conclusion,
    ConnectionsFindings,
    FailureKind,
    KeysFindings,
    Stage,
    StageName,
    StageOutcome,
    StoredFindings,
    TlsFindings,
    Verdict,
    WellKnownFindings,
)

Stages = Mapping[StageName, Stage]

# On the way that a request takes, what does not work stops it.
_WAY = (
    StageName.NAME,
    StageName.WELL_KNOWN,
    StageName.ADDRESSES,
    StageName.CONNECTIONS,
    StageName.VERSION,
    StageName.KEYS,
    StageName.AUTHENTICATED,
)

# What the server says to our requests cannot be outweighed by other stages.
_DECISIVE = (StageName.NAME, StageName.KEYS, StageName.AUTHENTICATED)

# Where nothing is at the place to which requests go, the place may be wrong.
_NOBODY_THERE = (
    FailureKind.DNS_NOT_FOUND,
    FailureKind.DNS_FAILED,
    FailureKind.CONNECTION_REFUSED,
    FailureKind.CONNECTION_TIMEOUT,
    FailureKind.UNREACHABLE,
    FailureKind.IP_BLOCKED,
)

_TLS = (
    FailureKind.TLS_EXPIRED,
    FailureKind.TLS_NOT_YET_VALID,
    FailureKind.TLS_WRONG_NAME,
    FailureKind.TLS_UNTRUSTED,
    FailureKind.TLS_FAILED,
)

_THEIRS = "Resetting the connection will not help."

# What is the matter, for a person: who it is with, and what.
_EXPLANATIONS = {
    FailureKind.INVALID_NAME: "Nothing can be sent to this name",
    FailureKind.NOT_ALLOWED: (
        "This homeserver's federation_domain_whitelist does not have this server"
    ),
    FailureKind.IP_BLOCKED: (
        "This homeserver's IP blocklist has an address of this server, so Synapse does "
        "not connect to it"
    ),
    FailureKind.WELL_KNOWN_INVALID: (
        "Their file /.well-known/matrix/server is wrong, so requests do not find the "
        "server"
    ),
    FailureKind.WELL_KNOWN_UNREACHABLE: (
        "Their file /.well-known/matrix/server cannot be fetched, so requests do not "
        "find the server"
    ),
    FailureKind.DNS_NOT_FOUND: "The DNS has no address for this server",
    FailureKind.DNS_FAILED: "The DNS gives no answer about this server",
    FailureKind.CONNECTION_REFUSED: "Their server refuses connections",
    FailureKind.CONNECTION_TIMEOUT: "Their server does not react to connections",
    FailureKind.UNREACHABLE: "There is no way from this host to their server",
    FailureKind.TLS_EXPIRED: "Their certificate has expired",
    FailureKind.TLS_NOT_YET_VALID: "Their certificate is not valid yet",
    FailureKind.TLS_WRONG_NAME: "Their certificate is for another name",
    FailureKind.TLS_UNTRUSTED: (
        "Their certificate does not lead to an authority that this homeserver trusts"
    ),
    FailureKind.TLS_FAILED: "No TLS connection with their server comes about",
    FailureKind.REJECTED: "They are up, but they reject our requests",
    FailureKind.RATE_LIMITED: "They are up, but limit the rate of our requests",
    FailureKind.GONE: "Their server says that it is gone for good",
    FailureKind.HTTP_ERROR: ("A web server answers, but no homeserver does behind it"),
    FailureKind.RESPONSE_TIMEOUT: (
        "Their server takes connections, but does not answer in time"
    ),
    FailureKind.INVALID_RESPONSE: "What answers there is no Matrix homeserver",
    FailureKind.KEYS_MISSING: "Their server gives out no keys",
    FailureKind.KEYS_INVALID: "The keys that their server gives out are wrong",
    FailureKind.KEYS_EXPIRED: "The keys that their server gives out have expired",
    FailureKind.OTHER: "Requests to this server fail for a reason that has no name",
}

_ADVICE = {
    FailureKind.INVALID_NAME: (
        "Check how the name is written. If it is a leftover, have it forgotten."
    ),
    FailureKind.NOT_ALLOWED: (
        "If you want to federate with it, add it to federation_domain_whitelist and "
        "restart Synapse."
    ),
    FailureKind.IP_BLOCKED: (
        "If the address is right, take it out of ip_range_blacklist, or add it to "
        "ip_range_whitelist, and restart Synapse; if not, tell them: their DNS leads "
        "to a private address."
    ),
    FailureKind.WELL_KNOWN_INVALID: (
        "Tell them to correct the file: it has to be "
        '{"m.server": "<host>:<port>"}, with no scheme and no path.'
    ),
    FailureKind.WELL_KNOWN_UNREACHABLE: (
        "Tell them that their web server does not serve the file, or redirects to "
        "where it cannot be fetched."
    ),
    FailureKind.DNS_NOT_FOUND: (
        "If other servers fail like this one, look at the resolver of this host. If "
        "not, the domain may be gone: ask them, or have it forgotten."
    ),
    FailureKind.DNS_FAILED: (
        "If other servers fail like this one, look at the resolver of this host, in "
        "/etc/resolv.conf. If not, their name servers are broken: tell them."
    ),
    FailureKind.CONNECTION_REFUSED: (
        "Wait until their server is up again, or tell them: it is down, or their port "
        "is closed."
    ),
    FailureKind.CONNECTION_TIMEOUT: (
        "If others reach it, look at the firewall of this host; if not, tell them: "
        "their host is down, or their firewall drops connections."
    ),
    FailureKind.UNREACHABLE: (
        "Look at the routes and the firewall of this host; if other servers can be "
        "reached, tell them."
    ),
    FailureKind.TLS_EXPIRED: ("Nothing you do helps until they renew it: tell them."),
    FailureKind.TLS_NOT_YET_VALID: (
        "Check the clock of this host. If it is right, tell them: theirs was wrong "
        "when the certificate was made."
    ),
    FailureKind.TLS_WRONG_NAME: (
        "Tell them for which name the certificate has to be; nothing you do helps "
        "until they correct it."
    ),
    FailureKind.TLS_UNTRUSTED: (
        "Tell them: it is self-signed, or they do not send the certificates between. "
        "If it is of an authority of your own, add that to federation_custom_ca_list "
        "and restart Synapse."
    ),
    FailureKind.TLS_FAILED: (
        "Tell them: something that is no TLS server listens at that port, or it has no "
        "TLS version in common with us."
    ),
    FailureKind.REJECTED: (
        "Check that they can reach this homeserver and fetch its key, that the clock "
        "of this host is right, and that server_name and signing key are what they "
        "were. If so, ask them whether they have shut us out."
    ),
    FailureKind.RATE_LIMITED: (
        "Wait; if it goes on, ask them to allow this homeserver more."
    ),
    FailureKind.GONE: "Have it forgotten, if they confirm it.",
    FailureKind.HTTP_ERROR: (
        "Tell them: their homeserver is down, or their reverse proxy does not pass "
        "/_matrix on to it."
    ),
    FailureKind.RESPONSE_TIMEOUT: (
        "Wait, or tell them: their server is overloaded or stuck."
    ),
    FailureKind.INVALID_RESPONSE: (
        "Tell them that something else than a homeserver answers at their address."
    ),
    FailureKind.KEYS_MISSING: (
        "Tell them that /_matrix/key/v2/server gives no key: until it does, nothing "
        "that they send can be verified."
    ),
    FailureKind.KEYS_INVALID: (
        "Tell them what is wrong with the answer of /_matrix/key/v2/server: until it "
        "is right, nothing that they send can be verified."
    ),
    FailureKind.KEYS_EXPIRED: (
        "Check the clock of this host. If it is right, tell them: their homeserver has "
        "to be restarted, or its clock set."
    ),
    FailureKind.OTHER: "See the messages of the stages, and the log of Synapse.",
}

# Those for which somebody has to do something before a reset is of any use.
_NOT_HELPED_BY_RESET = frozenset(FailureKind) - {FailureKind.RATE_LIMITED}


def conclude(stages: Stages) -> Conclusion:
    """Tell what the stages mean.

    Args:
        stages: All of them, by name.
    """
    failing = _failing_stage(stages)
    if failing is not None:
        return _failing(stages, failing)
    weak = _weak_stage(stages)
    if weak is not None:
        return _degraded(stages, weak)
    return _ok(stages)


def _failing_stage(stages: Stages) -> Stage | None:
    """Return the stage because of which requests fail; None if they do not."""
    failed = [
        stages[name] for name in _WAY if stages[name].outcome is StageOutcome.FAILED
    ]
    if stages[StageName.AUTHENTICATED].outcome is StageOutcome.OK:
        # A request has got through all the same: what else fails, fails at times.
        failed = [stage for stage in failed if stage.name in _DECISIVE]
    if not failed:
        return None
    first = failed[0]
    if (
        isinstance(first.findings, KeysFindings)
        and first.findings.error is not None
        and first.findings.error.kind is stages[StageName.AUTHENTICATED].kind
    ):
        # It is not the keys: it answers so to everything.
        first = stages[StageName.AUTHENTICATED]
    return _misled(stages, first) or first


def _misled(stages: Stages, failed: Stage) -> Stage | None:
    """Return the well-known stage, if it is why requests go to where nobody is."""
    well_known = stages[StageName.WELL_KNOWN]
    if (
        failed.name not in (StageName.ADDRESSES, StageName.CONNECTIONS)
        or failed.kind not in _NOBODY_THERE
        or well_known.outcome is not StageOutcome.WARNING
        or not isinstance(well_known.findings, WellKnownFindings)
        or well_known.findings.delegated_to is not None
    ):
        return None
    first = well_known.findings.requests[0]
    if first.error is not None and first.error.kind in _NOBODY_THERE:
        # Nobody is there either: the whole server is away.
        return None
    return well_known


def _weak_stage(stages: Stages) -> Stage | None:
    """Return the stage that shows best why federation does not always work."""
    names = (*_WAY, StageName.CLOCK)
    for outcome in (StageOutcome.FAILED, StageOutcome.WARNING):
        for name in names:
            if stages[name].outcome is outcome:
                return stages[name]
    return None


def _failing(stages: Stages, stage: Stage) -> Conclusion:
    kind = stage.kind or FailureKind.OTHER
    explanation = _explained(stages, kind)
    stored = _stored(stages)
    if stored.reaches_us:
        explanation += "; they reach us, but we cannot reach them"
    advice = _ADVICE[kind]
    if _is_for_clock(stages, kind):
        advice = f"{stages[StageName.CLOCK].message}: set whichever is wrong. {advice}"
    if kind in _NOT_HELPED_BY_RESET:
        advice = f"{advice} {_THEIRS}"
    return Conclusion(Verdict.FAILING, kind, f"{explanation}.", advice)


def _is_for_clock(stages: Stages, kind: FailureKind) -> bool:
    """Tell whether the clocks may be the cause."""
    return stages[StageName.CLOCK].outcome is StageOutcome.WARNING and kind in (
        FailureKind.REJECTED,
        FailureKind.KEYS_EXPIRED,
        FailureKind.TLS_EXPIRED,
        FailureKind.TLS_NOT_YET_VALID,
    )


def _explained(stages: Stages, kind: FailureKind) -> str:
    """Return what is the matter, with what is known of it."""
    explanation = _EXPLANATIONS[kind]
    if kind in _TLS:
        return _explained_tls(stages, kind)
    if kind in (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT):
        where = _places(stages)
        return f"{explanation} at {where}" if where else explanation
    if kind in (FailureKind.DNS_NOT_FOUND, FailureKind.DNS_FAILED):
        addresses = stages[StageName.ADDRESSES].findings
        if isinstance(addresses, AddressesFindings) and addresses.targets:
            return f"{explanation} ({addresses.targets[0].host})"
    return explanation


def _explained_tls(stages: Stages, kind: FailureKind) -> str:
    explanation = _EXPLANATIONS[kind]
    tls = _bad_tls(stages, kind)
    if tls is None or tls.certificate is None:
        return explanation
    certificate = tls.certificate
    if kind is FailureKind.TLS_EXPIRED and certificate.days_left < 0:
        days = -certificate.days_left
        ago = f"{days} day{'s'[: days > 1]} ago"
        explanation = f"Their certificate expired {ago}"
    if kind is FailureKind.TLS_WRONG_NAME:
        names = ", ".join(certificate.names[:3]) or "no name at all"
        explanation = f"Their certificate is for {names}, and not for their name"
    others = [
        _EXPLANATIONS[problem.kind].removeprefix("Their certificate ")
        for problem in tls.problems
        if problem.kind is not kind
    ]
    return " and ".join([explanation, *others])


def _bad_tls(stages: Stages, kind: FailureKind) -> TlsFindings | None:
    findings = stages[StageName.CONNECTIONS].findings
    if isinstance(findings, ConnectionsFindings):
        for connection in findings.connections:
            if connection.tls is not None and any(
                problem.kind is kind for problem in connection.tls.problems
            ):
                return connection.tls
    return None


def _places(stages: Stages) -> str:
    """Return where requests go, in words."""
    findings = stages[StageName.CONNECTIONS].findings
    if not isinstance(findings, ConnectionsFindings):
        return ""
    places = [
        f"{connection.address or connection.host} port {connection.port}"
        for connection in findings.connections
        if connection.outcome is StageOutcome.FAILED
    ]
    return " and ".join(places[:2])


def _degraded(stages: Stages, stage: Stage) -> Conclusion:
    kind = stage.kind or FailureKind.OTHER
    advice = _ADVICE[kind]
    if stage.name is StageName.WELL_KNOWN and kind is FailureKind.OTHER:
        explanation = (
            "Requests get through, but Synapse still uses an older answer about where "
            "this server is"
        )
        advice = "Wait until what is cached expires, or restart Synapse."
    elif stage.name is StageName.CLOCK and isinstance(stage.findings, ClockFindings):
        explanation = f"Requests get through, but {_lowered(stage.message)}"
        advice = "Set the clock that is wrong; see whether this host uses NTP."
    elif stage.name is StageName.CONNECTIONS:
        explanation = f"It works for some and not for others: {_lowered(stage.message)}"
        advice = (
            "Whether a request gets through depends on the address to which it is "
            f"sent. {advice}"
        )
    else:
        explanation = f"Requests get through, but: {_lowered(stage.message)}"
    return Conclusion(
        Verdict.DEGRADED, kind, f"{explanation}.", f"{advice}{_reset_advice(stages)}"
    )


def _ok(stages: Stages) -> Conclusion:
    stored = _stored(stages)
    if stored.failing_since_ts is None and not stored.next_retry_ts:
        return Conclusion(
            Verdict.OK,
            None,
            "Federation with this server works.",
            "There is nothing to do.",
        )
    return Conclusion(
        Verdict.OK,
        None,
        "Federation with this server works, but Synapse still has it as failing.",
        f"Everything works now{_reset_advice(stages)}",
    )


def _reset_advice(stages: Stages) -> str:
    """Return what to do about a backoff that is not needed any more."""
    stored = _stored(stages)
    if not stored.next_retry_ts:
        return ""
    if stored.backoff_left_ms:
        when = f"will not try again for {shown_duration(stored.backoff_left_ms)}"
    else:
        when = "will try again only when something is due"
    return f"; Synapse {when}. Reset the connection."


def _stored(stages: Stages) -> StoredFindings:
    findings = stages[StageName.STORED].findings
    return findings if isinstance(findings, StoredFindings) else StoredFindings(False)


def _lowered(message: str) -> str:
    """Return a message as the end of a sentence."""
    return message[:1].lower() + message[1:].rstrip(".")
