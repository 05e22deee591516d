# SPDX-License-Identifier: Apache-2.0
"""Says in words how it is between this homeserver and another server.

A failure by itself is said by `synapse_federation_admin.failures.text`. Nothing may
look into what is made here, either.
"""

from enum import Enum
from typing import NamedTuple

import attr

from synapse_federation_admin import limits
from synapse_federation_admin.failures.kinds import (
    Failure,
    FailureKind,
    Fault,
    HasFailure,
)
from synapse_federation_admin.failures.reasons import Worded
from synapse_federation_admin.failures.text import (
    HELPED_BY_RESET,
    advice_of,
    cache_of,
    cut,
    fault_of,
    lowered,
    message_of,
    others_of,
    shown_duration,
    way_of,
)

# Longer than anybody waits: Synapse's backoff can be such that it never ends.
_NEVER_MS = 10 * 365 * 86_400_000

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

    def __init__(self, told: str, unproven: str = "") -> None:
        """Say what is told, and where no real request proves it, if otherwise."""
        self.told = told
        self.unproven = unproven

    NONE = (
        "Federation with this server works.",
        "The server accepts a small transaction of this homeserver.",
    )

    # It takes one transaction at a time.
    BUSY = (
        "Federation with this server works.",
        "The server is reached, and still busy with a transaction of this homeserver.",
    )

    # The stages are in order; the last real request was not.
    UNPROVEN = (
        "The server accepts a small transaction of this homeserver, but the last real "
        "request failed."
    )
    STAYS_BUSY = (
        "The server is reached, and still busy with a transaction of this homeserver, "
        "but the last real request failed."
    )
    REFUSES = "The server answers small requests, but not a real one."

    REFUSES_LARGE = (
        "Federation works for small requests; a large one was refused, and none as "
        "large was accepted since."
    )

    # No request gets through.
    STOPS = ""

    NEXT_ADDRESS = (
        "Federation works, but some addresses do not; Synapse then tries the next one, "
        "at most 0.3 s later.",
        "The server answers, but some addresses do not work; Synapse then tries the "
        "next one, at most 0.3 s later.",
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
    ANSWERS_SOME = "The server answers other requests, but not yet a real transaction."
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

    ONLY_SEND = (
        "Other requests are answered: only /_matrix/federation/v1/send, by which "
        "messages arrive, is not."
    )
    FILE_IS_WHY = "Without the file, requests go to the server name itself, port 8448."
    FILE_IS_LATE = "Synapse waits for the file, and gets no further."
    ONE_OF_SEVERAL = (
        "They have several addresses: another one than Synapse has met may accept it."
    )
    ANOTHER_WORKS = (
        "Another address of theirs works, but Synapse connects to this one first, and "
        "stays with it."
    )
    FOUND_WITHOUT_FILE = "Synapse finds the server without the file."
    HARMLESS_PAGE = (
        "Their web server returns a page for /.well-known/matrix/server, which does no "
        "harm."
    )
    HARMLESS_TLS = (
        "TLS with their web server (port 443) fails, which does no harm: Synapse finds "
        "the server without it."
    )
    SENDER_OVERLOADED = (
        "The process of this homeserver that sends there is overloaded: see the stage "
        "'sender'."
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


class RealTraffic(NamedTuple):
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


# Where only the last real request failed.
_UNPROVEN = (Effect.UNPROVEN, Effect.STAYS_BUSY)

# Where an address is of no use, and another one is.
_BY_ADDRESS = (Effect.NEXT_ADDRESS, Effect.WAITS_FOR_ADDRESS)

# Of any other effect: that it works, but not always.
_VERDICTS = {
    Effect.NONE: Verdict.OK,
    Effect.BUSY: Verdict.OK,
    Effect.REFUSES: Verdict.FAILING,
    Effect.STOPS: Verdict.FAILING,
    Effect.NOT_KNOWN: Verdict.UNKNOWN,
}


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Situation(HasFailure):
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
        met: What the last real request met, as it was recorded; "" if it is not that
            of which the failure tells. The kind alone says more than is known.
    """

    effect: Effect
    failure: Failure | None = None
    remarks: tuple[Remark, ...] = ()
    backoff_left_ms: int | None = None
    also: Failure | None = None
    real: RealTraffic | None = None
    may_connect: bool = False
    met: str = ""

    @property
    def fault(self) -> Fault | None:
        """Whose fault it is; `unknown`: it may be either's; None: nothing is wrong."""
        return fault_of(self.failure) if self.failure else None

    @property
    def verdict(self) -> Verdict:
        """`ok`; `degraded`: it works, not well; `failing`; `unknown`: a bug here."""
        return _VERDICTS.get(self.effect, Verdict.DEGRADED)

    @property
    def _is_proven(self) -> bool:
        """Whether the last real request succeeded, and Synapse does not back off."""
        is_backing_off = self.backoff_left_ms is not None
        last = self.real and self.real.last
        return last is LastRequest.SUCCEEDED and not is_backing_off

    @property
    def explanation(self) -> str:
        """What is wrong, for people."""
        return " ".join(self.sentences)

    @property
    def sentences(self) -> list[str]:
        """The same, sentence by sentence."""
        first = not self._is_proven and self.effect.unproven
        sentences = [first or self.effect.told]
        if self.failure is not None:
            met = self.met or message_of(self.failure)
            sentences += [f"{met}.", way_of(self.failure)]
            sentences += [cache_of(self.failure), others_of(self.failure)]
        elif self.backoff_left_ms is not None:
            sentences.append("Synapse still backs off from it.")
        sentences += [remark.value for remark in self.remarks]
        if self.also is not None:
            sentences += [f"{message_of(self.also)}.", way_of(self.also)]
        if self.real is not None:
            sentences.append(_told_of_real(self.real))
        return [*filter(None, sentences)]

    @property
    def advice(self) -> str:
        """What to do next, for people."""
        effect, kind, left_ms = self.effect, self.kind, self.backoff_left_ms
        has_failed = self.real is not None and self.real.last is LastRequest.FAILED
        advice = []
        if effect is Effect.NO_VERSION:
            advice.append(_NO_VERSION_ADVICE)
        elif effect in _UNPROVEN:
            advice.append(_RECONNECT)
        elif (
            self.failure
            and self.failure.facts.address
            and (effect in _BY_ADDRESS or kind is FailureKind.RESPONSE_TIMEOUT)
            and effect is not Effect.STOPS
        ):
            address = cut(self.failure.facts.address, limits.FACT)
            advice.append(_BAD_ADDRESS_ADVICE.format(address=address))
        elif self.failure is not None:
            advice.append(advice_of(self.failure))
        elif left_ms is None and not has_failed:
            advice.append("Nothing to do.")
        if self.also is not None and self.also.kind in _NOT_CONNECTED:
            advice.append("Or the homeserver has to be at port 8448.")
        if (
            effect is Effect.STOPS
            and kind is not HELPED_BY_RESET
            and not self.may_connect
        ):
            advice.append(_IN_VAIN)
        if has_failed and effect.unproven and left_ms is None:
            advice.append(_RECONNECT)
        # To reconnect is to have it tried now, too.
        if left_ms is not None and effect not in _UNPROVEN:
            retries = "only when something is due"
            if left_ms > _NEVER_MS:
                retries = "never by itself"
            elif left_ms:
                retries = f"only in {shown_duration(left_ms)}"
            advice.append(f"Synapse retries {retries}: reset the connection.")
        return " ".join(advice)


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
