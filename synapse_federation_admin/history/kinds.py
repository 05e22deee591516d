# SPDX-License-Identifier: Apache-2.0
"""Sets of kinds as one number, so that the database can add to them."""

from collections.abc import Iterable

from synapse_federation_admin.failures.kinds import FailureKind

# The bit of each kind is its place here: new ones come last, and none is ever removed.
_ORDER = tuple(kind.value for kind in FailureKind)


def to_bits(kinds: Iterable[str]) -> int:
    """Return kinds as a number."""
    bits = 0
    for kind in kinds:
        bits |= 1 << _ORDER.index(kind)
    return bits


def from_bits(bits: int) -> tuple[str, ...]:
    """Return the kinds that a number stands for."""
    return tuple(kind for place, kind in enumerate(_ORDER) if bits >> place & 1)


def bits_of(column: str) -> str:
    """Return the SQL for the number of the kind in a column; 0 where it is NULL."""
    cases = " ".join(
        f"WHEN '{kind}' THEN {1 << place}" for place, kind in enumerate(_ORDER)
    )
    return f"CASE {column} {cases} ELSE 0 END"
