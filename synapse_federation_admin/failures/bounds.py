# SPDX-License-Identifier: Apache-2.0
"""Texts from outside, as they may be told."""

# How much of a text in which a remote server has a say is kept: of a word, and a line.
MAX_WORD = 100
MAX_TEXT = 300


def bounded(text: str, most: int = MAX_TEXT) -> str:
    """Return a text as one line of printable ASCII that is not endless."""
    shown = ascii(text[:most])[1:-1]
    return shown if len(shown) <= most else shown[: most - 3] + "..."


def word(value: object, most: int = MAX_WORD) -> str | None:
    """Return a text from outside as it may be told; None if it is none."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return bounded(value, most) if isinstance(value, str) else None
