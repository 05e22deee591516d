# SPDX-License-Identifier: Apache-2.0
"""A filter of destinations as an object in a body: as in the parameters of a list."""

from synapse_federation_admin.api._base import invalid_param
from synapse_federation_admin.api._body import Body
from synapse_federation_admin.api._parameters import (
    FILTER_PARAMETERS,
    make_filter,
)
from synapse_federation_admin.config import parse_duration
from synapse_federation_admin.destinations.values import (
    DestinationFilter,
    DestinationStatus,
)
from synapse_federation_admin.failures.kinds import FAILURE_KINDS


def parse_filter_object(body: Body) -> DestinationFilter:
    """Parse the key `filter` of a body, which must be there.

    Its keys are those of `FILTER_PARAMETERS`; `status` and `failure` are a string, or a
    list of them.

    Raises:
        SynapseError: 400 `M_INVALID_PARAM`, naming the key; also if there is nothing
            that it filters by, for a filter must not select everything by mistake.
    """
    given = body.object("filter", FILTER_PARAMETERS)
    found = make_filter(
        given.text("destination"),
        frozenset(_statuses(given)),
        _failing_for_ms(given),
        frozenset(_failures(given)),
    )
    if found.keeps_all:
        raise invalid_param(
            "Key 'filter' must have at least one of the keys 'status', 'destination', "
            "'failing_for' and 'failure' that leaves something out"
        )
    return found


def _statuses(given: Body) -> list[DestinationStatus]:
    if "status" not in given:
        return []
    found = []
    for value in given.text_or_texts("status", len(DestinationStatus)):
        try:
            found.append(DestinationStatus(value))
        except ValueError:
            names = ", ".join(f"'{status.value}'" for status in DestinationStatus)
            raise invalid_param(f"Key 'filter.status' must be of {names}") from None
    return found


def _failures(given: Body) -> list[str]:
    if "failure" not in given:
        return []
    found = given.text_or_texts("failure", len(FAILURE_KINDS))
    if not set(found) <= set(FAILURE_KINDS):
        names = ", ".join(f"'{kind}'" for kind in FAILURE_KINDS)
        raise invalid_param(f"Key 'filter.failure' must be of {names}")
    return found


def _failing_for_ms(given: Body) -> int | None:
    if "failing_for" not in given:
        return None
    found = parse_duration(given.text("failing_for"))
    if found is None:
        raise invalid_param(
            "Key 'filter.failing_for' must be a duration: a number and one of s, m, h, "
            "d and w, such as 7d"
        )
    return found
