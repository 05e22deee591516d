# SPDX-License-Identifier: Apache-2.0
"""A diagnosis in words: its stages, and what each of them has seen. Pure."""

from collections.abc import Iterator, Mapping
from typing import Any

from synapse_federation_admin.durations import duration, utc
from synapse_federation_admin.wording.amounts import count

STAGES = {
    "name": "Name",
    "well_known": "Delegation",
    "addresses": "Addresses",
    "connections": "Connections",
    "version": "Version",
    "keys": "Keys",
    "authenticated": "Transaction",
    "clock": "Clock",
    "sender": "Our sender",
    "stored": "Real traffic",
}
"""What is told of each stage."""

SIGNS = {
    "ok": ("✓", "good", "as it should be"),
    "warning": ("!", "warn", "not as it should be"),
    "failed": ("✗", "fail", "nothing gets past here"),
    "skipped": ("\u2013", "skipped", "not tried"),
}
"""What came of a stage: its sign, its class, and a word."""


def told(findings: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """Write what is known of findings, line by line; what is not is left out.

    Args:
        findings: As the API has them.
        indent: What each line begins with.
    """
    for key, value in findings.items():
        if value in (None, "", [], {}) or key == _TOLD_BY_ANOTHER:
            continue
        label, deeper = f"{indent}{_label(key)}:", f"{indent}  "
        if isinstance(value, Mapping):
            yield label
            yield from told(value, deeper)
        elif isinstance(value, list) and isinstance(value[0], Mapping):
            yield label
            for each in value:
                for number, line in enumerate(told(each, f"{deeper}  ")):
                    yield line if number else f"{deeper}- {line.lstrip()}"
        else:
            values = value if isinstance(value, list) else [value]
            yield f"{label} {', '.join(_word(key, each) for each in values)}"


def _label(key: str) -> str:
    unit = key.rpartition("_")[2]
    return (key[: -len(unit) - 1] if unit in _UNITS else key).replace("_", " ")


def _word(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    unit = _UNITS.get(key.rpartition("_")[2])
    if unit is not None and isinstance(value, int):
        return unit(value)
    # One line each, whoever has written it.
    return " ".join(str(value).split())


def _time(ts: int) -> str:
    when = utc(ts)
    return f"{when:%Y-%m-%d %H:%M:%S} UTC" if when else str(ts)


def _signed(ms: int) -> str:
    return f"{'-' if ms < 0 else ''}{duration(abs(ms))}"


def _size(size: int) -> str:
    return f"{count(size)} bytes"


# Rounded down, it is -2 where the line before it says that it has ended a day ago.
_TOLD_BY_ANOTHER = "days_left"

_UNITS = {"ts": _time, "ms": _signed, "bytes": _size}
