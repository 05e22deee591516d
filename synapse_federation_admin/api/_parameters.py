# SPDX-License-Identifier: Apache-2.0
"""The query parameters of v2: whatever is misspelt or doubled is an error."""

import re
from collections.abc import Collection, Sequence
from enum import Enum
from typing import TypeVar

from synapse.module_api import SynapseRequest

from synapse_federation_admin.api._base import (
    invalid_param,
    parse_choice,
    parse_count,
    parse_text,
)
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationOrder,
    DestinationStatus,
    Direction,
    Sort,
)
from synapse_federation_admin.failures.kinds import FAILURE_KINDS

E = TypeVar("E", bound=Enum)

FILTER_PARAMETERS = ("status", "destination", "failing_for", "failure")
SORT_PARAMETERS = ("order_by", "dir")

# Those that Synapse itself takes on every endpoint.
_SYNAPSES_OWN = frozenset({"access_token", "user_id"})

_UNIT_MS = {
    "s": 1000,
    "m": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
    "w": 604_800_000,
}
_DURATION = re.compile("([0-9]{1,9})([smhdw])")


class Include(Enum):
    """What more is to be told of each destination."""

    BACKLOG = "backlog"
    FAILURE = "failure"
    AVAILABILITY = "availability"


def require_known(
    request: SynapseRequest,
    names: Collection[str],
    *,
    repeatable: Collection[str] = ("status", "include", "failure"),
) -> None:
    """Refuse query parameters that an endpoint does not take.

    A misspelt filter must not select everything.

    Args:
        request: The request.
        names: Those that it takes.
        repeatable: Those that may be given more than once.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    for name, values in (request.args or {}).items():
        text = name.decode("utf-8", "replace")
        if text in _SYNAPSES_OWN:
            continue
        if text not in names:
            known = ", ".join(f"'{known}'" for known in names) or "none"
            raise invalid_param(
                f"Unknown query parameter '{text[:100]}'; known are: {known}"
            )
        if len(values) > 1 and text not in repeatable:
            raise invalid_param(f"Query parameter '{text}' must be given only once")


def parse_filter(request: SynapseRequest) -> DestinationFilter:
    """Parse `FILTER_PARAMETERS`.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    return make_filter(
        parse_text(request, "destination"),
        frozenset(parse_choices(request, "status", tuple(DestinationStatus))),
        _parse_duration(request, "failing_for"),
        frozenset(_parse_words(request, "failure", FAILURE_KINDS)),
    )


def make_filter(
    name: str,
    statuses: frozenset[DestinationStatus],
    failing_for_ms: int | None,
    failures: frozenset[str],
) -> DestinationFilter:
    """Return the filter that the API's words stand for.

    Args:
        name: Part of the name, or with `*` or `?` a pattern for all of it; "": any.
        statuses: The statuses to keep; all of them are no condition.
        failing_for_ms: For how long it has been failing at least.
        failures: For which reasons it is failing.
    """
    is_glob = "*" in name or "?" in name
    return DestinationFilter(
        name_contains="" if is_glob else name,
        name_glob=name if is_glob else "",
        statuses=statuses if len(statuses) < len(DestinationStatus) else frozenset(),
        failing_for_ms=failing_for_ms,
        failures=failures,
    )


def duration_ms(text: str) -> int | None:
    """Return the ms of a duration such as `7d`; None if it is none."""
    match = _DURATION.fullmatch(text)
    return int(match[1]) * _UNIT_MS[match[2]] if match else None


def parse_sort(request: SynapseRequest) -> Sort:
    """Parse `SORT_PARAMETERS`.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    return Sort(
        parse_choice(request, "order_by", default=DestinationOrder.DESTINATION),
        parse_choice(request, "dir", default=Direction.FORWARDS),
    )


def parse_includes(
    request: SynapseRequest, choices: Sequence[Include] = tuple(Include)
) -> frozenset[Include]:
    """Parse `include`.

    Args:
        request: The request.
        choices: What may be included.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    return frozenset(parse_choices(request, "include", choices))


def parse_flag(request: SynapseRequest, name: str) -> bool:
    """Parse a parameter that is `true` or `false`, which is the default.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    text = parse_text(request, name) if name.encode() in (request.args or {}) else None
    if text in (None, "false"):
        return False
    if text == "true":
        return True
    raise invalid_param(f"Query parameter '{name}' must be 'true' or 'false'")


def parse_limit(request: SynapseRequest, *, default: int, highest: int) -> int:
    """Parse `limit`.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    limit = parse_count(request, "limit", default=default)
    if 1 <= limit <= highest:
        return limit
    raise invalid_param(f"Query parameter 'limit' must be from 1 to {highest}")


def parse_choices(
    request: SynapseRequest, name: str, choices: Sequence[E]
) -> Sequence[E]:
    """Parse a parameter that is one of an Enum's values, and may be given repeatedly.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter and the values.
    """
    by_word = {choice.value: choice for choice in choices}
    return [by_word[word] for word in _parse_words(request, name, tuple(by_word))]


def _parse_words(
    request: SynapseRequest, name: str, words: Sequence[str]
) -> Sequence[str]:
    found = []
    for value in (request.args or {}).get(name.encode(), []):
        word = value.decode("utf-8", "replace")
        if word not in words:
            names = ", ".join(f"'{word}'" for word in words)
            raise invalid_param(f"Query parameter '{name}' must be one of {names}")
        found.append(word)
    return found


def _parse_duration(request: SynapseRequest, name: str) -> int | None:
    if name.encode() not in (request.args or {}):
        return None
    found = duration_ms(parse_text(request, name))
    if found is None:
        raise invalid_param(
            f"Query parameter '{name}' must be a duration: a number and one of "
            "s, m, h, d and w, such as 7d"
        )
    return found
