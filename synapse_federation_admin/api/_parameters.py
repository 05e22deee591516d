# SPDX-License-Identifier: Apache-2.0
"""The query parameters of v2: whatever is misspelt or doubled is an error."""

from collections.abc import Collection
from enum import Enum
from typing import TypeVar

from synapse.module_api import SynapseRequest

from synapse_federation_admin.api._base import (
    invalid_param,
    parse_count,
)
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationStatus,
)

E = TypeVar("E", bound=Enum)

FILTER_PARAMETERS = ("status", "destination", "failing_for", "failure")
SORT_PARAMETERS = ("order_by", "dir")

# Those that Synapse itself takes on every endpoint.
_SYNAPSES_OWN = frozenset({"access_token", "user_id"})


def require_known(
    request: SynapseRequest,
    names: Collection[str],
    *,
    repeatable: Collection[str] = (),
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


def parse_limit(request: SynapseRequest, *, default: int, highest: int) -> int:
    """Parse `limit`.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the parameter.
    """
    limit = parse_count(request, "limit", default=default)
    if 1 <= limit <= highest:
        return limit
    raise invalid_param(f"Query parameter 'limit' must be from 1 to {highest}")
