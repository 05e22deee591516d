# SPDX-License-Identifier: Apache-2.0
"""Says in words what many failures together mean."""

from collections.abc import Sequence
from enum import Enum

from synapse_federation_admin import limits


class OurPart(Enum):
    """What of ours may be the cause if most servers fail; in words."""

    RESOLVER = "the resolver of this host"
    NETWORK = "the network of this host"
    NETWORK_OR_PROXY = "the network of this host, its firewall or its proxy"
    PROXY = "the outgoing proxy of this homeserver (https_proxy)"
    BLACKLIST = (
        "federation_ip_range_blacklist or ip_range_blacklist in the configuration"
    )
    CLOCK = "the clock of this host"
    TRUST = (
        "what this host trusts, its certificate authorities or "
        "federation_custom_ca_list, or something in between that intercepts TLS"
    )
    INTERCEPTION = "something between this host and the others that intercepts TLS"
    SIGNING_KEY = (
        "this homeserver's signing key, or that others cannot fetch it from here"
    )
    RATE = "that this homeserver sends too much"
    LOAD = "the network of this host, its proxy, or that it is overloaded"
    REQUESTS = "a proxy between this host and the others, or what this homeserver sends"


def explain_us(
    part: OurPart, kinds: Sequence[str], failing: float, tried: float, window_ms: int
) -> str:
    """Say that something of ours is the likely cause.

    Args:
        part: What.
        kinds: The kinds with which servers fail.
        failing: How many of those known for long fail so; each owner counts once.
        tried: How many were tried.
        window_ms: Within which time.
    """
    *others, last = kinds
    either = f"{', '.join(others)} or {last}" if others else last
    return (
        f"{_percent(failing, tried)} of long-known servers tried in the last "
        f"{_minutes(window_ms)} fail with {either}: {part.value} is the likely cause"
    )


def explain_shared(
    value: str, began: int, of: int, window_ms: int, *, is_address: bool
) -> str:
    """Say that servers which began to fail have an address or an issuer in common.

    Args:
        value: The address, or who issued their certificates.
        began: How many of them have it, of those known for long.
        of: Of how many.
        window_ms: Within which time they began to.
        is_address: Whether it is an address.
    """
    what = f"have certificates of the issuer {value}: that"
    if is_address:
        what = f"lead to the address {value}: what runs there, or the way there,"
    return (
        f"{began} of {of} long-known servers that began to fail in the last "
        f"{_minutes(window_ms)} {what} is the likely cause"
    )


def explain_nothing(
    failing: int, tried: int, window_ms: int, *, can_be_told: bool, unanswered: int = 0
) -> str:
    """Say that nothing is out of the ordinary.

    Args:
        failing: How many servers fail, of anybody.
        tried: How many were tried.
        window_ms: Within which time.
        can_be_told: Whether enough of those tried are known for long.
        unanswered: How many others have not answered since they failed, and are not in
            backoff.
    """
    time = _minutes(window_ms)
    others = ""
    if unanswered:
        have = "has" if unanswered == 1 else "have"
        others = (
            f"; {unanswered} that {have} accepted no request since one failed "
            f"{'is' if unanswered == 1 else 'are'} in no backoff"
        )
    if not tried:
        which = "other server" if others else "server"
        return f"No {which} was tried in the last {time}{others}"
    if not failing:
        return f"None of the {tried} servers tried in the last {time} fails{others}"
    fail = (
        f"{_percent(failing, tried)} of servers tried in the last {time} fail "
        f"({failing} of {tried})"
    )
    if not can_be_told:
        return (
            f"{fail}; too few of them are known for long to tell whether it is for a "
            "reason on this side"
        )
    return f"{fail}, and nothing suggests that it is for a reason on this side"


def explain_senders(names: Sequence[str]) -> str:
    """Say that processes of ours that send do not; no name: there is none."""
    if not names:
        return "Nothing is sent to any server: no process of this homeserver sends"
    told = ", ".join(names[: limits.NAMES_IN_A_SENTENCE])
    more = len(names) - limits.NAMES_IN_A_SENTENCE
    others = f" and {more} more" if more > 0 else ""
    verbs = "does not run, or has" if len(names) == 1 else "do not run, or have"
    return f"Of this homeserver's senders {told}{others} {verbs} not come to new events"


def _percent(part: float, whole: float) -> str:
    return f"{int(100 * part / whole)} %"


def _minutes(window_ms: int) -> str:
    minutes = window_ms // 60_000
    return "hour" if minutes == 60 else f"{minutes} minutes"
