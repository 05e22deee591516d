# SPDX-License-Identifier: Apache-2.0
"""Says failures in words: a sentence, advice, and whose fault it is.

What is told of each kind and reason stands with them. Nothing may look into what is
made here: kind, reason and facts are there for that.
"""

from enum import Enum

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import (
    SET_CLOCK,
    Failure,
    FailureKind,
    Fault,
    Reason,
)

# How much of a fact is told in a sentence at least, to tell anything.
_LEAST_DETAIL = 12

# Longer than anybody waits: Synapse's backoff can be such that it never ends.
_NEVER_MS = 10 * 365 * 86_400_000

_NO_VERSION_ADVICE = (
    "Little depends on it. Tell their admin that /_matrix/federation/v1/version does "
    "not answer."
)
_RESET_DOES_NOT_HELP = "Resetting the connection does not help."

# Of this a reset can be of use: nobody has to do anything before.
_HELPED_BY_RESET = FailureKind.RATE_LIMITED

# Of these the advice is the same for every reason.
_ONE_ADVICE = (FailureKind.RATE_LIMITED, FailureKind.TLS_NOT_YET_VALID)

# Nothing fails.
_CLOCKS_ALONE = (FailureKind.OTHER, Reason.CLOCK)


class Verdict(Enum):
    """Whether federation with a server works."""

    OK = "ok"

    # It works, but not always, or something is not as it should be.
    DEGRADED = "degraded"

    FAILING = "failing"

    # This module has failed before it could be told.
    UNKNOWN = "unknown"


class Effect(Enum):
    """What comes of a failure, or of there being none: as people are told it first."""

    NONE = "Federation with this server works."

    # No request gets through.
    STOPS = ""

    NEXT_ADDRESS = (
        "Federation works, but some addresses do not; Synapse loses time with them and "
        "then tries the next."
    )
    SOME_REQUESTS = (
        "Federation works for some requests and not for others, by the address that "
        "Synapse picks."
    )
    AT_TIMES = "Federation works at times only."
    NO_VERSION = "Federation works, but the server does not tell its version."
    WORKS = "Federation works, but not everything is in order."
    NOT_KNOWN = "Whether federation works is not known."


class Remark(Enum):
    """What else is to be said, in words."""

    FILE_IS_WHY = "Without the file, requests do not find the server."
    FOUND_WITHOUT_FILE = "Synapse finds the server without the file."
    HARMLESS_PAGE = (
        "Their web server returns a page for /.well-known/matrix/server, which does no "
        "harm."
    )
    OTHER_ADDRESSES = "Other addresses fail in another way."
    THEY_REACH_US = "They reach this homeserver, but it does not reach them."


# Of any other effect: that it works, but not always.
_VERDICTS = {
    Effect.NONE: Verdict.OK,
    Effect.STOPS: Verdict.FAILING,
    Effect.NOT_KNOWN: Verdict.UNKNOWN,
}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Situation:
    """How it is between this homeserver and another server.

    Attributes:
        effect: What comes of it.
        failure: What is wrong; None if nothing is.
        remarks: What else is to be said.
        backoff_left_ms: For how long Synapse does not retry; 0: until something is due;
            None: it does not back off, or a reset would not help.
    """

    effect: Effect
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()
    backoff_left_ms: int | None = None

    @property
    def kind(self) -> FailureKind | None:
        """The cause; None if nothing is wrong."""
        return self.failure.kind if self.failure else None

    @property
    def verdict(self) -> Verdict:
        """Whether federation works."""
        return _VERDICTS.get(self.effect, Verdict.DEGRADED)


def explanation_of(situation: Situation) -> str:
    """Return how it is: one or more sentences."""
    sentences = [situation.effect.value]
    if situation.failure is not None:
        sentences.append(f"{message_of(situation.failure)}.")
    elif situation.backoff_left_ms is not None:
        sentences.append("Synapse still backs off from it.")
    sentences += [remark.value for remark in situation.remarks]
    return " ".join(filter(None, sentences))


def advice_for(situation: Situation) -> str:
    """Return what to do: one or more sentences, at most limits.ADVICE characters."""
    failure, effect = situation.failure, situation.effect
    if effect is Effect.NO_VERSION:
        advice = _NO_VERSION_ADVICE
    elif failure is not None:
        advice = advice_of(failure)
    else:
        advice = "Nothing to do." if situation.backoff_left_ms is None else ""
    if effect is Effect.STOPS and failure and failure.kind is not _HELPED_BY_RESET:
        advice = f"{advice} {_RESET_DOES_NOT_HELP}"
    left_ms = situation.backoff_left_ms
    if left_ms is not None:
        retries = "only when something is due"
        if left_ms > _NEVER_MS:
            retries = "never by itself"
        elif left_ms:
            retries = f"only in {shown_duration(left_ms)}"
        advice = f"{advice} Synapse retries {retries}: reset the connection.".strip()
    return advice


def message_of(failure: Failure) -> str:
    """Return what is wrong: one sentence without its full stop, printable ASCII."""
    headline, because = _headline(failure), _because(failure)
    sentence = _cut(f"{headline}: {because}" if because else headline)
    left = limits.SENTENCE - len(sentence) - len(" ()")
    detail = _told(failure)
    if detail and left >= _LEAST_DETAIL:
        sentence = f"{sentence} ({_cut(detail, left)})"
    return sentence


def summary_of(failure: Failure) -> str:
    """Return what is wrong in a few words, as the end of a sentence."""
    detail = _told(failure, with_place=False)
    what = lowered(_headline(failure))
    return _cut(f"{what} ({detail})" if detail else what, limits.SENTENCE // 2)


def detail_of(failure: Failure) -> str:
    """Return what is particular, in the words of others too; "" if nothing is."""
    facts = failure.facts
    code = f"OpenSSL verification error {facts.code}" if facts.code else ""
    cause = detail_of(facts.cause) if facts.cause else ""
    parts = (_told(failure), code, facts.exception, cause)
    return ", ".join(part for part in parts if part)


def advice_of(failure: Failure) -> str:
    """Return what to do: sentences."""
    kind, reason = failure.kind, failure.reason
    if (kind, reason) == _CLOCKS_ALONE:
        return SET_CLOCK
    advice = reason.advice if reason and kind not in _ONE_ADVICE else None
    return _filled(advice or kind.advice, failure)


def fault_of(failure: Failure) -> Fault:
    """Return whose fault it is."""
    fault = failure.reason.fault if failure.reason else None
    return fault or failure.kind.fault


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


def _headline(failure: Failure) -> str:
    kind, reason = failure.kind, failure.reason
    if (kind, reason) == _CLOCKS_ALONE:
        return "Clocks differ"
    return (reason.headline if reason else None) or kind.headline


def _template(failure: Failure) -> str:
    # When a certificate becomes valid is for all of a chain alike.
    is_early = failure.kind is FailureKind.TLS_NOT_YET_VALID
    return (failure.kind if is_early else failure.reason or failure.kind).because


def _because(failure: Failure) -> str:
    """Return what follows the headline; "" if nothing does."""
    facts = failure.facts
    parts = [_filled(_template(failure), failure)]
    if facts.cause is not None:
        because = _because(facts.cause) if facts.cause.reason else ""
        parts.append(because or lowered(_headline(facts.cause)))
    because = ": ".join(part for part in parts if part)
    also = [lowered(_headline(Failure(kind))) for kind in facts.also]
    return "; also: ".join(part for part in (because, *also) if part)


def _told(failure: Failure, *, with_place: bool = True) -> str:
    """Return the facts for a person that the sentence itself does not tell."""
    facts, template = failure.facts, _template(failure)
    parts = []
    if facts.address and with_place:
        more = f" and {facts.more} more" if facts.more else ""
        parts.append(f"{_cut(facts.address, limits.FACT)} port {facts.port}{more}")
    if failure.kind is FailureKind.IP_BLOCKED:
        parts += facts.names[: limits.NAMES_IN_A_SENTENCE]
    status = f"HTTP {facts.status}" if facts.status is not None else ""
    said = "" if "{said}" in template else facts.said
    parts.append(" ".join(filter(None, (status, facts.errcode, said))))
    if facts.issuer:
        parts.append(f"issuer {facts.issuer}")
    if facts.is_relayed:
        parts.append("told by another process of this homeserver")
    return ", ".join(part for part in parts if part)


def _filled(template: str, failure: Failure) -> str:
    """Return a text with facts in place of their names."""
    facts = failure.facts
    host = _cut(facts.host, limits.FACT) or "the server name"
    ahead = shown_duration(abs(facts.ahead_ms))
    expired = "has expired"
    if facts.ago_ms is not None:
        expired = f"expired {shown_duration(facts.ago_ms)} ago"
    names = ", ".join(
        _cut(n, limits.FACT) for n in facts.names[: limits.NAMES_IN_A_SENTENCE]
    )
    return template.format(
        host=host,
        said=_cut(facts.said, limits.FACT) or "one of them",
        expired=expired,
        mismatch=f"for {_cut(names, limits.FACT)}, not for {host}"
        if names
        else f"not for {host}",
        ahead=f"{ahead} {'ahead of' if facts.ahead_ms > 0 else 'behind'}",
    )


def _cut(text: str, most: int = limits.SENTENCE) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
