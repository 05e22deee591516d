# SPDX-License-Identifier: Apache-2.0
"""Keeps the newest of what is known in memory, within a bound."""

from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def keep_newest(kept: dict[K, V], key: K, value: V, most: int) -> None:
    """Put something last, and let go of the first if there are too many.

    Args:
        kept: What is kept, the newest last.
        key: Of what it is.
        value: What is known of that now.
        most: How many are kept.
    """
    kept.pop(key, None)
    kept[key] = value
    if len(kept) > most:
        del kept[next(iter(kept))]
