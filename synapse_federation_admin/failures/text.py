# SPDX-License-Identifier: Apache-2.0
"""Says failures in words: a sentence, advice, and whose fault it is.

What is told of each kind and reason stands with them. Nothing may look into what is
made here: kind, reason and facts are there for that.
"""

from datetime import datetime, timezone
from enum import Enum

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import (
    BY_LINK,
    SET_CLOCK,
    Failure,
    FailureKind,
    Fault,
    Reason,
)
from synapse_federation_admin.failures.reasons import Worded

_NEITHER = (None, None)

# A sentence without its full stop.
_SENTENCE = limits.SENTENCE - 1

# Longer than anybody waits: Synapse's backoff can be such that it never ends.
_NEVER_MS = 10 * 365 * 86_400_000

_DAY_MS = 86_400_000

# Until which time times are told: the year 9999.
_LAST_TS = 253_370_764_800_000

_NO_VERSION_ADVICE = (
    "Little depends on it. Tell their admin that /_matrix/federation/v1/version does "
    "not answer."
)

_NOT_CONNECTED = (FailureKind.CONNECTION_REFUSED, FailureKind.CONNECTION_TIMEOUT)

_RECONNECT = "Reconnect: that shows whether real requests are accepted."

_IN_VAIN = "Resetting the connection does not help."

_BAD_ADDRESS_ADVICE = (
    "Tell their admin: {address} does not work; mend it, or take it out of the DNS."
)

# Of this a reset can be of use: nobody has to do anything before.
_HELPED_BY_RESET = FailureKind.RATE_LIMITED

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


class Verdict(Enum):
    """Whether federation with a server works."""

    OK = "ok"

    # It works, but not always, or something is not as it should be.
    DEGRADED = "degraded"

    FAILING = "failing"

    # This module has failed before it could be told.
    UNKNOWN = "unknown"


class Effect(Worded):
    """What comes of a failure, or of there being none: as people are told it first."""

    def __init__(self, _: str, unproven: str = "") -> None:
        """Say what is told where the last real request failed, if that is otherwise."""
        self.unproven = unproven

    NONE = "Federation with this server works."

    # The stages are in order; the last real request was not, or that is not known.
    ANSWERS = "The server answers the requests of this diagnosis."
    UNPROVEN = (
        "The server answers the requests of this diagnosis, but the last real request "
        "failed."
    )
    REFUSES = "The server answers small requests, but not a real one."

    REFUSES_LARGE = (
        "Federation works for small requests; a large one was refused, and none as "
        "large was accepted since."
    )

    # No request gets through.
    STOPS = ""

    NEXT_ADDRESS = (
        "Federation works, but some addresses do not; Synapse then tries the next one.",
        "The server answers, but some addresses do not work; Synapse then tries the "
        "next one.",
    )
    WAITS_FOR_ADDRESS = (
        "Federation works, but some addresses do not answer; Synapse waits up to 30 s "
        "for them at its first request, and then uses another one.",
        "The server answers, but some addresses do not; Synapse waits up to 30 s for "
        "them at its first request, and then uses another one.",
    )
    SOME_REQUESTS = (
        "Federation works for some requests and not for others, by the address that "
        "Synapse picks."
    )
    ANSWERS_SOME = "The server answers this diagnosis, but not all of its requests."
    AT_TIMES = "Federation works at times only."
    NO_VERSION = (
        "Federation works, but the server does not tell its version.",
        "The server answers, but does not tell its version.",
    )
    WORKS = (
        "Federation works, but not everything is in order.",
        "The server answers, but not everything is in order.",
    )
    NOT_KNOWN = "Whether federation works is not known."


class Remark(Enum):
    """What else is to be said, in words."""

    FILE_IS_WHY = "Without the file, requests go to the server name itself, port 8448."
    FILE_IS_LATE = "Synapse waits for the file, and gets no further."
    FOUND_WITHOUT_FILE = "Synapse finds the server without the file."
    HARMLESS_PAGE = (
        "Their web server returns a page for /.well-known/matrix/server, which does no "
        "harm."
    )
    HARMLESS_TLS = (
        "TLS with their web server (port 443) fails, which does no harm: Synapse finds "
        "the server without it."
    )
    THEY_REACH_US = "They reach this homeserver, but it does not reach them."


class LastRequest(Enum):
    """What came of the last real request to a server, a diagnosis's own aside."""

    SUCCEEDED = "succeeded"

    # And none has succeeded since.
    FAILED = "failed"

    # None is recorded.
    NONE = "none"

    # History is off, or cannot be read, and Synapse does not back off from the server.
    NOT_KNOWN = "not_known"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class RealTraffic:
    """What real requests to a server met.

    Attributes:
        last: What came of the last of them.
        failed_ago_ms: How long ago one last failed; None if none has, as far as known.
        kind: Why; None if that is not known.
        succeeded_ago_ms: How long ago one last succeeded; None if that is not known.
    """

    last: LastRequest
    failed_ago_ms: int | None = None
    kind: FailureKind | None = None
    succeeded_ago_ms: int | None = None


# Where an address is of no use, and another one is.
_BY_ADDRESS = (Effect.NEXT_ADDRESS, Effect.WAITS_FOR_ADDRESS)

# Of any other effect: that it works, but not always.
_VERDICTS = {
    Effect.NONE: Verdict.OK,
    Effect.ANSWERS: Verdict.OK,
    Effect.REFUSES: Verdict.FAILING,
    Effect.STOPS: Verdict.FAILING,
    Effect.NOT_KNOWN: Verdict.UNKNOWN,
}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Situation:
    """How it is between this homeserver and another server.

    Attributes:
        effect: What comes of it.
        failure: What is wrong; None if nothing is.
        also: What else is wrong, of which a sentence of its own tells.
        remarks: What else is to be said.
        backoff_left_ms: For how long Synapse does not retry; 0: until something is due;
            None: it does not back off, or a reset would not help.
        real: What real requests met; None if that was not looked for.
        may_connect: Whether a reconnect may get through all the same.
    """

    effect: Effect
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()
    backoff_left_ms: int | None = None
    also: Failure | None = None
    real: RealTraffic | None = None
    may_connect: bool = False

    @property
    def kind(self) -> FailureKind | None:
        """The cause; None if nothing is wrong."""
        return self.failure.kind if self.failure else None

    @property
    def reason(self) -> Reason | None:
        """What exactly, below the kind; None where that cannot be told."""
        return self.failure.reason if self.failure else None

    @property
    def fault(self) -> Fault | None:
        """Whose fault it is; `unknown`: it may be either's; None: nothing is wrong."""
        return _fault_of(self.failure) if self.failure else None

    @property
    def verdict(self) -> Verdict:
        """`ok`; `degraded`: it works, not well; `failing`; `unknown`: a bug here."""
        return _VERDICTS.get(self.effect, Verdict.DEGRADED)

    @property
    def _is_unproven(self) -> bool:
        return self.real is not None and self.real.last is LastRequest.FAILED

    @property
    def explanation(self) -> str:
        """What is wrong, for people."""
        return " ".join(self.sentences)

    @property
    def sentences(self) -> list[str]:
        """The same, sentence by sentence."""
        first = self._is_unproven and self.effect.unproven
        sentences = [first or self.effect.value]
        if self.failure is not None:
            sentences += [f"{message_of(self.failure)}.", _way_of(self.failure)]
            sentences.append(_cache_of(self.failure))
        elif self.backoff_left_ms is not None:
            sentences.append("Synapse still backs off from it.")
        sentences += [remark.value for remark in self.remarks]
        if self.also is not None:
            sentences += [f"{message_of(self.also)}.", _way_of(self.also)]
        if self.real is not None:
            sentences.append(_told_of_real(self.real))
        return [*filter(None, sentences)]

    @property
    def advice(self) -> str:
        """What to do next, for people."""
        effect, kind, left_ms = self.effect, self.kind, self.backoff_left_ms
        advice = []
        if effect is Effect.NO_VERSION:
            advice.append(_NO_VERSION_ADVICE)
        elif effect is Effect.UNPROVEN or (
            effect is Effect.ANSWERS and left_ms is None
        ):
            advice.append(_RECONNECT)
        elif self.failure and self.failure.facts.address and effect in _BY_ADDRESS:
            address = _cut(self.failure.facts.address, limits.FACT)
            advice.append(_BAD_ADDRESS_ADVICE.format(address=address))
        elif self.failure is not None:
            advice.append(advice_of(self.failure))
        elif left_ms is None:
            advice.append("Nothing to do.")
        if self.also is not None and self.also.kind in _NOT_CONNECTED:
            advice.append("Or the homeserver has to be at port 8448.")
        if (
            effect is Effect.STOPS
            and kind is not _HELPED_BY_RESET
            and not self.may_connect
        ):
            advice.append(_IN_VAIN)
        if self._is_unproven and effect.unproven and left_ms is None:
            advice.append(_RECONNECT)
        # To reconnect is to have it tried now, too.
        if left_ms is not None and effect is not Effect.UNPROVEN:
            retries = "only when something is due"
            if left_ms > _NEVER_MS:
                retries = "never by itself"
            elif left_ms:
                retries = f"only in {shown_duration(left_ms)}"
            advice.append(f"Synapse retries {retries}: reset the connection.")
        return " ".join(advice)


def message_of(failure: Failure) -> str:
    """Return what is wrong: one sentence without its full stop, printable ASCII."""
    headline, because, told = _words(failure)[0], _because(failure), _told(failure)
    sentence = f"{headline}: {because}" if because else headline
    # What there is no room for stands in the detail.
    while told and len(f"{sentence} ({', '.join(told)})") > _SENTENCE:
        told.pop()
    return _cut(f"{sentence} ({', '.join(told)})" if told else sentence, _SENTENCE)


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


def _way_of(failure: Failure) -> str:
    """Return a sentence of how a request came to where it failed; "" if by the name."""
    links = failure.facts.via
    if not links or failure.kind in _OF_THE_SERVER:
        return ""
    *before, last = links
    template = last.how.later if before else last.how.first
    return _cut(
        template.format(
            from_=_cut(before[-1].to, limits.FACT) if before else "",
            to=_cut(last.to, limits.FACT),
            port=last.port,
        )
        + "."
    )


def _cache_of(failure: Failure) -> str:
    """Return a sentence of what Synapse uses while a file fails; "" if nothing."""
    facts = failure.facts
    if failure.kind is FailureKind.OTHER or not facts.until_ts:
        return ""
    left, until = (
        shown_duration(facts.left_ms),
        _shown_time(facts.until_ts, facts.left_ms),
    )
    return f"Synapse uses the file that it has cached, for {left}, until {until}."


def _by_link(failure: Failure) -> tuple[str | None, Fault | None]:
    """Return advice, and whose fault it is, by how a request came there last."""
    links = failure.facts.via
    return BY_LINK.get((failure.kind, links[-1].how), _NEITHER) if links else _NEITHER


def _fault_of(failure: Failure) -> Fault:
    """Return whose fault it is: by the reason, by the way, or by the kind."""
    by_reason = failure.reason.fault if failure.reason else None
    return by_reason or _by_link(failure)[1] or failure.kind.fault


def lowered(text: str) -> str:
    """Return a text as the end of a sentence: not "tLS handshake failed"."""
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def shown_duration(duration_ms: int) -> str:
    """Return a duration as a person reads it: `3 days`, `31 h`, `5 min`, `12 s`."""
    seconds = duration_ms // 1000
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length} {unit}"
    return f"{seconds} s"


def _told_of_real(real: RealTraffic) -> str:
    """Return a sentence of what real requests met, and how long ago."""
    succeeded = failed = ""
    if real.succeeded_ago_ms is not None:
        succeeded = f"{shown_duration(real.succeeded_ago_ms)} ago"
    if real.failed_ago_ms is not None:
        why = lowered(real.kind.headline) if real.kind else "why is not known"
        failed = f"{shown_duration(real.failed_ago_ms)} ago ({why})"
    if real.last is LastRequest.NOT_KNOWN:
        return "What real requests met is not known: that is not recorded."
    if real.last is LastRequest.NONE:
        return "No real request to it is recorded."
    if real.last is LastRequest.SUCCEEDED:
        before = f"; the last failure was {failed}" if failed else ""
        return f"The last real request succeeded {succeeded}{before}."
    since = f"; the last success was {succeeded}" if succeeded else ""
    return (
        f"The last real request failed {failed}, and none has succeeded since{since}."
    )


def _words(failure: Failure) -> tuple[str, str, str]:
    """Return the headline, what follows it, and advice, with the names of facts."""
    kind, reason = failure.kind, failure.reason
    by_link = _by_link(failure)[0]
    if reason is None or (
        kind is FailureKind.TLS_NOT_YET_VALID
        and reason in (Reason.OWN_CERTIFICATE, Reason.IN_CHAIN)
    ):
        # When a certificate becomes valid is for all of a chain alike.
        return kind.headline, kind.because, by_link or kind.advice
    if kind is FailureKind.OTHER and reason is Reason.CLOCK:
        # Nothing fails.
        return "Clocks differ", reason.because, SET_CLOCK
    advice = kind.advice if kind is _HELPED_BY_RESET else reason.advice
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
        parts.append(f"{_cut(facts.address, limits.FACT)} port {facts.port}{more}")
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
    host = _cut(facts.host, limits.FACT) or "the server name"
    names = ", ".join(facts.names[: limits.NAMES_IN_A_SENTENCE])
    ago = "" if facts.ago_ms is None else shown_duration(facts.ago_ms)
    ahead = shown_duration(abs(facts.ahead_ms))
    instance = _cut(facts.instance, limits.FACT) or "the federation sender"
    target = _cut(facts.target, limits.FACT)
    last = facts.via[-1] if facts.via else None
    return template.format(
        host=host,
        instance=instance,
        position=facts.position,
        ago=ago or "a time that is not known",
        target=target,
        status=f"HTTP {facts.status}" if facts.status else "an error",
        right=target or "host:port",
        to=_cut(last.to, limits.FACT) if last else host,
        port=last.port if last else facts.port,
        begins=f': it begins with "{_cut(facts.said, limits.FACT)}"'
        if facts.said
        else "",
        has=f"; it has {_cut(names, limits.FACT)}" if names else "",
        most=f" (more than {facts.most_bytes // 1024} KiB)" if facts.most_bytes else "",
        until=_shown_time(facts.until_ts, facts.left_ms),
        said=_cut(facts.said, limits.FACT) or "one of them",
        expired=f"expired {ago} ago" if ago else "has expired",
        mismatch=(f"for {_cut(names, limits.FACT)}, " if names else "")
        + f"not for {host}",
        issuer=_holder(facts.issuer) or "that has issued it",
        subject=_holder(facts.subject) or "a certificate",
        server=f" ({_cut(facts.server, limits.FACT)})" if facts.server else "",
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
    return _cut(" of ".join((*told[:1], *told[1:][-1:])), limits.FACT)


def _cut(text: str, most: int = limits.SENTENCE) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
