# SPDX-License-Identifier: Apache-2.0
"""Says failures in words: a sentence, advice, and whose fault it is.

What is told of each kind and reason stands with them. Nothing may look into what is
made here: kind, reason and facts are there for that.
"""

from datetime import datetime, timezone

from synapse_federation_admin import limits
from synapse_federation_admin.durations import SECOND_MS, duration
from synapse_federation_admin.failures.kinds import (
    SET_CLOCK,
    Failure,
    FailureKind,
    Fault,
    How,
    Reason,
)

# A sentence without its full stop.
_SENTENCE = limits.SENTENCE - 1

# Less is not told in brackets, if it is cut.
_LEAST = 30

_DAY_MS = 86_400_000

# Until which time times are told: the year 9999.
_LAST_TS = 253_370_764_800_000

# Of this a reset can be of use: nobody has to do anything before.
HELPED_BY_RESET = FailureKind.RATE_LIMITED

# How requests come to the other server is not told where it is known that it was that
# server itself which has answered.
_OF_THE_SERVER = frozenset(
    {
        FailureKind.INVALID_NAME,
        FailureKind.NOT_ALLOWED,
        FailureKind.REJECTED,
        FailureKind.RATE_LIMITED,
        FailureKind.TOO_LARGE,
        FailureKind.KEYS_MISSING,
        FailureKind.KEYS_INVALID,
        FailureKind.KEYS_EXPIRED,
        FailureKind.INTERNAL,
        FailureKind.OTHER,
    }
)

_NAME_A_HOST = "Tell their admin: m.server has to name a valid host that exists."

# What is told in place of a kind's advice where a request came to the place by such a
# link last. It is always their admin who has to act.
_BY_LINK: dict[tuple[FailureKind, How], str] = {
    (FailureKind.DNS_NOT_FOUND, How.FILE): _NAME_A_HOST,
    (FailureKind.DNS_NOT_FOUND, How.FILE_WITHOUT_PORT): _NAME_A_HOST,
    (FailureKind.DNS_NOT_FOUND, How.SERVICE): (
        "Tell their admin: the SRV record has to name a valid host that exists, or to "
        "be removed."
    ),
    (FailureKind.WELL_KNOWN_UNREACHABLE, How.REDIRECT): (
        "Tell their admin: correct the redirect of the file on their web server."
    ),
    (FailureKind.CONNECTION_REFUSED, How.PORT): (
        "Tell their admin: the homeserver is down, or it is not at port {port}."
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE): (
        "Tell their admin: the homeserver is down, or m.server has to name another "
        "port than {port}."
    ),
    (FailureKind.CONNECTION_REFUSED, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the homeserver is down; or it is at port 443, and m.server "
        'has to be "{to}:443".'
    ),
    (FailureKind.CONNECTION_REFUSED, How.SERVICE): (
        "Tell their admin: the homeserver is down, or the SRV record has to name "
        "another host or port."
    ),
    (FailureKind.CONNECTION_TIMEOUT, How.FILE_WITHOUT_PORT): (
        "Tell their admin: the host is down, or a firewall drops port {port}; or "
        'm.server has to be "{to}:443".'
    ),
} | dict.fromkeys(
    [(kind, How.SECOND_FILE) for kind in FailureKind],
    "Tell their admin: only one delegation is followed; m.server has to be "
    '"{to}:{port}" itself.',
)


def message_of(failure: Failure) -> str:
    """Return what is wrong: one sentence without its full stop, printable ASCII."""
    sentence, told = gist_of(failure), ", ".join(_told(failure))
    # What there is no room for stands in the detail.
    room = _SENTENCE - len(f"{sentence} ()")
    is_told = told and room >= min(len(told), _LEAST)
    return cut(f"{sentence} ({cut(told, room)})" if is_told else sentence, _SENTENCE)


def gist_of(failure: Failure) -> str:
    """Likewise, without what is told in brackets."""
    headline, because = _words(failure)[0], _because(failure)
    return f"{headline}: {because}" if because else headline


def detail_of(failure: Failure) -> str:
    """Return what is particular, in the words of others too; "" if nothing is."""
    facts = failure.facts
    code = f"OpenSSL verification error {facts.code}" if facts.code else ""
    cause = detail_of(facts.cause) if facts.cause else ""
    issuer = f"issuer {facts.issuer}" if facts.issuer else ""
    parts = (*_told(failure), issuer, code, facts.exception, cause)
    return ", ".join(part for part in parts if part)


def advice_of(failure: Failure) -> str:
    """Return what to do: sentences."""
    return _filled(_words(failure)[2], failure)


def way_of(failure: Failure) -> str:
    """Return a sentence of how a request came to where it failed; "" if by the name."""
    links = failure.facts.via
    if not links or failure.kind in _OF_THE_SERVER:
        return ""
    *before, last = links
    template = last.how.later if before else last.how.first
    return cut(
        template.format(
            from_=cut(before[-1].to, limits.FACT) if before else "",
            to=cut(last.to, limits.FACT),
            port=last.port,
        )
        + "."
    )


def cache_of(failure: Failure) -> str:
    """Return a sentence of what Synapse uses while a file fails; "" if nothing."""
    facts = failure.facts
    if failure.kind is FailureKind.OTHER or not facts.until_ts:
        return ""
    left, until = (
        shown_duration(facts.left_ms),
        _shown_time(facts.until_ts, facts.left_ms),
    )
    return f"Synapse uses the file that it has cached, for {left}, until {until}."


def others_of(failure: Failure) -> str:
    """Return a sentence of who else's servers fail so; "" if that is not known."""
    others = failure.facts.others
    return (
        f"The servers of {others} others fail by the same authority." if others else ""
    )


def _by_link(failure: Failure) -> str | None:
    """Return the advice by how a request came there last; their admin has to act."""
    links = failure.facts.via
    return _BY_LINK.get((failure.kind, links[-1].how)) if links else None


def fault_of(failure: Failure) -> Fault:
    """Return whose fault it is: by the reason, by the way, or by the kind."""
    if failure.reason and failure.reason.fault:
        return failure.reason.fault
    return Fault.THEM if _by_link(failure) else failure.kind.fault


def lowered(text: str) -> str:
    """Return a text as the end of a sentence: not "tLS handshake failed"."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def shown_duration(duration_ms: int) -> str:
    """Return a duration as it stands in a sentence: in no less than seconds."""
    return duration(max(duration_ms, SECOND_MS))


def _words(failure: Failure) -> tuple[str, str, str]:
    """Return the headline, what follows it, and advice, with the names of facts."""
    kind, reason = failure.kind, failure.reason
    by_link = _by_link(failure)
    if reason is None or (
        kind is FailureKind.TLS_NOT_YET_VALID
        and reason in (Reason.OWN_CERTIFICATE, Reason.IN_CHAIN)
    ):
        # When a certificate becomes valid is for all of a chain alike.
        return kind.headline, kind.because, by_link or kind.advice
    if kind is FailureKind.OTHER and reason is Reason.CLOCK:
        # Nothing fails.
        return "Clocks differ", reason.because, SET_CLOCK
    advice = kind.advice if kind is HELPED_BY_RESET else reason.advice
    headline = reason.headline or kind.headline
    return headline, reason.because, advice or by_link or kind.advice


def _because(failure: Failure) -> str:
    """Return what follows the headline; "" if nothing does."""
    facts = failure.facts
    parts = [_filled(_words(failure)[1], failure)]
    if facts.cause is not None:
        because = _because(facts.cause) if facts.cause.reason else ""
        parts.append(because or lowered(_words(facts.cause)[0]))
    because = ": ".join(part for part in parts if part)
    also = [lowered(kind.headline) for kind in facts.also]
    return "; also: ".join(part for part in (because, *also) if part)


def _told(failure: Failure) -> list[str]:
    """Return the facts for a person that the sentence itself does not tell."""
    facts, parts = failure.facts, []
    if facts.address:
        more = f" and {facts.more} more" if facts.more else ""
        parts.append(f"{cut(facts.address, limits.FACT)} port {facts.port}{more}")
    if failure.kind is FailureKind.IP_BLOCKED:
        parts += facts.names[: limits.NAMES_IN_A_SENTENCE]
    because = _words(failure)[1]
    is_told = facts.status is None or "{status}" in because
    status = "" if is_told else f"HTTP {facts.status}"
    said = "" if "{said}" in because or "{begins}" in because else facts.said
    parts.append(" ".join(filter(None, (status, facts.errcode, said))))
    if facts.server and "{server}" not in because:
        parts.append(f"Server {facts.server}")
    if facts.is_relayed:
        parts.append("told by another process of this homeserver")
    return list(filter(None, parts))


def _filled(template: str, failure: Failure) -> str:
    """Return a text with facts in place of their names."""
    facts = failure.facts
    host = cut(facts.host, limits.FACT) or "the server name"
    names = ", ".join(facts.names[: limits.NAMES_IN_A_SENTENCE])
    ago = "" if facts.ago_ms is None else shown_duration(facts.ago_ms)
    ahead = shown_duration(abs(facts.ahead_ms))
    instance = cut(facts.instance, limits.FACT) or "the federation sender"
    target = cut(facts.target, limits.FACT)
    last = facts.via[-1] if facts.via else None
    return template.format(
        host=host,
        instance=instance,
        position=facts.position,
        ago=ago or "a time that is not known",
        target=target,
        status=f"HTTP {facts.status}" if facts.status else "an error",
        right=target or "host:port",
        to=cut(last.to, limits.FACT) if last else host,
        port=last.port if last else facts.port,
        begins=f': it begins with "{cut(facts.said, limits.FACT)}"'
        if facts.said
        else "",
        has=f"; it has {cut(names, limits.FACT)}" if names else "",
        most=f" (more than {facts.most_bytes // 1024} KiB)" if facts.most_bytes else "",
        until=_shown_time(facts.until_ts, facts.left_ms),
        said=cut(facts.said, limits.FACT) or "one of them",
        expired=f"expired {ago} ago" if ago else "has expired",
        mismatch=(f"for {cut(names, limits.FACT)}, " if names else "")
        + f"not for {host}",
        issuer=_holder(facts.issuer) or "that has issued it",
        subject=_holder(facts.subject) or "a certificate",
        server=f" ({cut(facts.server, limits.FACT)})" if facts.server else "",
        starts=f"it becomes valid only in {shown_duration(facts.left_ms)}; "
        if facts.left_ms
        else "",
        took=shown_duration(facts.took_ms),
        left=shown_duration(facts.left_ms),
        ahead=f"{ahead} {'ahead of' if facts.ahead_ms > 0 else 'behind'}",
    )


def _shown_time(ts: int, left_ms: int) -> str:
    """Return a time in UTC; with its date, if it is not within a day from now."""
    # A clock may be anywhere.
    time = datetime.fromtimestamp(min(max(ts, 0), _LAST_TS) / 1000, timezone.utc)
    return time.strftime("%Y-%m-%d %H:%M UTC" if left_ms > _DAY_MS else "%H:%M UTC")


def _holder(name: str) -> str:
    """Return of the name in a certificate, `CN=..., O=...`, what a person knows."""
    parts = dict(part.partition("=")[::2] for part in name.split(", "))
    told = [parts[key] for key in ("CN", "OU", "O") if parts.get(key)]
    return cut(" of ".join((*told[:1], *told[1:][-1:])), limits.FACT)


def cut(text: str, most: int = limits.SENTENCE) -> str:
    """Return a text that has at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 3]}..."
