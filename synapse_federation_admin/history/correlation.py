# SPDX-License-Identifier: Apache-2.0
"""Tells whether servers began to fail together, and whether it is us. Pure."""

from collections.abc import Mapping
from enum import Enum

import attr

from synapse_federation_admin.failures.kinds import FailureKind
from synapse_federation_admin.failures.together import (
    OurPart,
    explain_nothing,
    explain_shared,
    explain_us,
)
from synapse_federation_admin.storage.recent_attempts import (
    CauseType,
    RecentAttempts,
)

# Of fewer servers nothing can be told.
_LEAST = 5

# The share of the servers that worked, of which many began to fail.
_MANY = 0.5

# The share of those that share a cause, for it to be the cause; and of how many at most
# it has to be known where they lead.
_MOST = 0.75
_SAMPLE = 20

# Kinds that are one thing, seen from different sides, and what of ours it is likely to
# be if most servers fail with them.
_OURS: tuple[tuple[tuple[FailureKind, ...], OurPart], ...] = (
    ((FailureKind.DNS_FAILED, FailureKind.DNS_NOT_FOUND), OurPart.RESOLVER),
    (
        (
            FailureKind.CONNECTION_TIMEOUT,
            FailureKind.UNREACHABLE,
            FailureKind.CONNECTION_REFUSED,
        ),
        OurPart.NETWORK_OR_PROXY,
    ),
    (
        (
            FailureKind.DNS_FAILED,
            FailureKind.DNS_NOT_FOUND,
            FailureKind.CONNECTION_TIMEOUT,
            FailureKind.UNREACHABLE,
            FailureKind.CONNECTION_REFUSED,
        ),
        OurPart.NETWORK,
    ),
    ((FailureKind.IP_BLOCKED,), OurPart.BLACKLIST),
    ((FailureKind.TLS_EXPIRED, FailureKind.TLS_NOT_YET_VALID), OurPart.CLOCK),
    ((FailureKind.TLS_UNTRUSTED,), OurPart.TRUST),
    ((FailureKind.TLS_WRONG_NAME, FailureKind.TLS_FAILED), OurPart.INTERCEPTION),
    ((FailureKind.REJECTED,), OurPart.SIGNING_KEY),
    ((FailureKind.RATE_LIMITED,), OurPart.RATE),
    ((FailureKind.RESPONSE_TIMEOUT, FailureKind.INVALID_RESPONSE), OurPart.LOAD),
    (
        (FailureKind.HTTP_ERROR, FailureKind.GONE, FailureKind.TOO_LARGE),
        OurPart.REQUESTS,
    ),
)


class CorrelationVerdict(Enum):
    """Whose fault it is likely to be when servers fail."""

    # Nothing out of the ordinary.
    NORMAL = "normal"

    # This homeserver's: its resolver, its network, its clock.
    US = "us"

    # That of something which several other servers share.
    SHARED = "shared"


@attr.s(slots=True, frozen=True, auto_attribs=True)
class Correlation:
    """Whether servers began to fail together, and what they share.

    Attributes:
        verdict: `normal`; `us`: the cause is likely to be this homeserver's; `shared`:
            something that several other servers share.
        explanation: The same for people, in a sentence.
        last_hour: What was tried in the last hour.
        lately: What was tried in the last 15 minutes.
    """

    verdict: CorrelationVerdict
    explanation: str
    last_hour: RecentAttempts
    lately: RecentAttempts


def correlate(last_hour: RecentAttempts, lately: RecentAttempts) -> Correlation:
    """Judge what was tried.

    Args:
        last_hour: In the last hour.
        lately: In the last quarter of an hour.
    """
    # What is in both is told of the shorter time, which says more.
    for window, judge in (
        (lately, _one_of_theirs),
        (lately, _began_together),
        (last_hour, _one_of_theirs),
        (last_hour, _began_together),
        (last_hour, _nothing_works),
    ):
        found = judge(window)
        if found is not None:
            verdict, explanation = found
            return Correlation(verdict, explanation, last_hour, lately)
    explanation = explain_nothing(
        last_hour.failing, last_hour.total, last_hour.window_ms
    )
    return Correlation(CorrelationVerdict.NORMAL, explanation, last_hour, lately)


_Judgement = tuple[CorrelationVerdict, str] | None


def _began_together(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause on our side, if many servers began to fail with it.

    Any homeserver knows servers that are long dead, and meets others that have never
    worked, by the thousand when somebody joins an old room or makes names up: what
    counts is how many of those that worked began to fail.
    """
    kinds = attempts.causes_of(CauseType.KIND)
    if attempts.worked >= _LEAST and attempts.worked >= _MANY * (
        attempts.worked + attempts.succeeded
    ):
        return _ours(attempts, {c.value: c.worked for c in kinds}, attempts.worked)
    return None


def _nothing_works(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause on our side, if not one server is reached for an hour.

    Unless that is because nobody but long dead ones is tried.
    """
    if attempts.failing < _LEAST or attempts.succeeded:
        return None
    if attempts.recent < _LEAST and attempts.ever_succeeded:
        return None
    counts = {c.value: c.destinations for c in attempts.causes_of(CauseType.KIND)}
    return _ours(attempts, counts, attempts.failing)


def _ours(
    attempts: RecentAttempts, counts: Mapping[str, int], total: int
) -> _Judgement:
    """Tell what of ours may be the cause.

    Args:
        attempts: What was tried.
        counts: How many fail with each kind, of those that matter.
        total: How many of those there are.
    """
    for family, ours in _OURS:
        kinds = [kind.value for kind in family if counts.get(kind.value)]
        if not kinds or sum(counts[kind] for kind in kinds) < _MOST * total:
            continue
        with_them = sum(
            cause.destinations
            for cause in attempts.causes_of(CauseType.KIND)
            if cause.value in kinds
        )
        return CorrelationVerdict.US, explain_us(
            ours, kinds, with_them, attempts.total, attempts.window_ms
        )
    return None


def _one_of_theirs(attempts: RecentAttempts) -> _Judgement:
    """Tell of a cause that those who began to fail share, and others do not."""
    if attempts.began < _LEAST:
        return None
    causes = []
    if attempts.looked >= min(attempts.began, _SAMPLE):
        causes += [(c, attempts.looked) for c in attempts.causes_of(CauseType.ADDRESS)]
    if attempts.succeeded:
        # Else it may be our clock, and most servers have the same few issuers.
        causes += [(c, attempts.began) for c in attempts.causes_of(CauseType.ISSUER)]
    for cause, of in causes:
        if cause.began < max(_LEAST, _MOST * of):
            continue
        explanation = explain_shared(
            cause.value,
            cause.began,
            of,
            attempts.window_ms,
            is_address=cause.type is CauseType.ADDRESS,
        )
        return CorrelationVerdict.SHARED, explanation
    return None
