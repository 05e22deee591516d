# SPDX-License-Identifier: Apache-2.0
"""What fails, in words: kinds, and for how long. Pure."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from synapse_federation_admin.failures.kinds import UNKNOWN_KIND, Failure, FailureKind
from synapse_federation_admin.failures.text import advice_of

_KINDS = {kind.value: kind for kind in FailureKind}

CAUSES = {
    **{value: kind.headline for value, kind in _KINDS.items()},
    UNKNOWN_KIND: "Not known: no cause is recorded",
}
"""What is told of each kind, in a few words."""


class AgeColumn(NamedTuple):
    """A column of the table of what fails, and the filter that leads to its servers.

    Attributes:
        age: The key in the summary.
        label: Its head.
        failing_for: For how long at least; None: any time.
        failing_under: For less than how long; None: any time.
    """

    age: str
    label: str
    failing_for: str | None
    failing_under: str | None


AGES = (
    AgeColumn("<1h", "< 1 h", None, "1h"),
    AgeColumn("<1d", "< 1 d", "1h", "1d"),
    AgeColumn("<7d", "< 7 d", "1d", "7d"),
    AgeColumn("<30d", "< 30 d", "7d", "30d"),
    AgeColumn(">=30d", "older", "30d", None),
)


def cause(kind: str) -> str:
    """Return a kind in a few words; what a later release has written, as it is."""
    return CAUSES.get(kind, kind)


def advice(kind: str) -> str:
    """Return what is to be done about a kind; "" if it is not known here."""
    found = _KINDS.get(kind)
    return advice_of(Failure(found)) if found else ""


def heat(count: int, most: int) -> int:
    """Return how strong a number among others is shown: 0 if it is 0, at most 9."""
    return 0 if not count else 1 + 8 * count.bit_length() // max(most.bit_length(), 1)


class Row(NamedTuple):
    """A row of the table of what fails.

    Attributes:
        kind: The kind.
        cells: How many for each age, and how strong that is shown.
        total: How many in all.
    """

    kind: str
    cells: Sequence[tuple[int, int]]
    total: int


def heat_table(table: Mapping[str, Mapping[str, int]]) -> list[Row]:
    """Return the rows of what fails, the kind with the most servers first.

    Args:
        table: Of each kind, how many have been failing for how long, as in the summary.
    """
    most = max((n for ages in table.values() for n in ages.values()), default=0)
    rows = [
        Row(
            kind,
            [
                (number, heat(number, most))
                for number in (ages.get(column.age, 0) for column in AGES)
            ],
            sum(ages.values()),
        )
        for kind, ages in table.items()
    ]
    return sorted(rows, key=lambda row: (-row.total, row.kind))
