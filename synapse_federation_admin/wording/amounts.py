# SPDX-License-Identifier: Apache-2.0
"""How amounts and texts of anybody are written. Pure."""


def cut(text: str, most: int = 160) -> str:
    """Return a text that is not endless."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def middle(name: str, most: int = 80) -> str:
    """Return a name that is not endless: with its end, which says whose it is."""
    half = most // 2
    return name if len(name) <= most else f"{name[: half - 1]}…{name[-half:]}"


def count(number: int) -> str:
    """Return a number with its thousands apart: 1,418."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """Return how many there are of something: `1 event`, `1,418 events`."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"
