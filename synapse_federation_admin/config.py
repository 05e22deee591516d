# SPDX-License-Identifier: Apache-2.0
"""The module's configuration: parsed once, at start-up, into frozen classes."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import attr
from synapse.module_api.errors import ConfigError

from synapse_federation_admin.durations import parse_duration

OLDEST_SYNAPSE = (1, 140)


# Parses the value of a key, for the attribute of the configuration; raises ConfigError.
_Parse = Callable[[str, object], Any]

_SECOND_MS = 1000
_DAY_MS = 86_400_000


@attr.s(slots=True, frozen=True, auto_attribs=True)
class FederationAdminConfig:
    """What `modules: [{module: ..., config: {...}}]` holds.

    Attributes:
        contact_on_reset: Whether `reset_connection` makes one real request to the
            destination, in the background.
        contact_timeout_ms: How long a destination has to answer that request.
        indexes: Whether to create the optional indexes on Synapse's `destinations`.
        audit_keep_for_ms: How long to keep what was done through this module.
        bulk_max_per_second: How many destinations a bulk run may contact per second.
        diagnosis_timeout_ms: How long the diagnosis of one destination may take.
        outages_keep_for_ms: How long to keep outages, and failures of real requests.
        history_enabled: Whether to record outages, and failures of real requests.
        history_look_up_servers: Whether to look up where servers lead that fail, for
            which nobody has asked.
        console_enabled: Whether to serve the console.
    """

    contact_on_reset: bool = True
    contact_timeout_ms: int = 10_000
    indexes: bool = False
    audit_keep_for_ms: int = 400 * _DAY_MS
    bulk_max_per_second: int = 500
    diagnosis_timeout_ms: int = 20_000
    outages_keep_for_ms: int = 90 * _DAY_MS
    history_enabled: bool = True
    history_look_up_servers: bool = True
    console_enabled: bool = True


def require_supported_synapse(installed: str | None = None) -> None:
    """Refuse a Synapse that is older than the oldest supported one.

    Args:
        installed: The version to look at; by default that of the installed Synapse.

    Raises:
        ConfigError: It is too old. Synapse then shows the sentence and does not start.
    """
    if installed is None:
        installed = version("matrix-synapse")
    match = re.match(r"(\d+)\.(\d+)", installed)
    if match and (int(match[1]), int(match[2])) < OLDEST_SYNAPSE:
        oldest = ".".join(map(str, OLDEST_SYNAPSE))
        raise ConfigError(
            f"synapse-federation-admin needs Synapse {oldest} or later, and this is "
            f"Synapse {installed}: upgrade it, or take this module out of `modules`"
        )


def parse_config(config: object) -> FederationAdminConfig:
    """Parse the `config` section of the module.

    Args:
        config: What the YAML holds; None stands for an empty section.

    Returns:
        The configuration, defaults filled in.

    Raises:
        ConfigError: A key is unknown, or a value has the wrong type or is out of range.
            It names the key and says what was expected.
    """
    values = _parse_section("", config)
    return FederationAdminConfig(**values)


def _parse_section(section: str, values: object) -> dict[str, Any]:
    """Parse the keys of a section, which is "" for the whole.

    Returns:
        The values, by the names of the attributes above.
    """
    path = tuple(section.split(".")) if section else ()
    of_section = f"{section}: " if section else ""
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"{of_section}expected a mapping of configuration keys, not "
            f"{_shown(values)}",
            path=path,
        )
    known = [
        key for key in (*_SECTIONS, *_PARSERS) if key.rpartition(".")[0] == section
    ]
    found: dict[str, Any] = {}
    for name, value in values.items():
        key = f"{section}.{name}" if section else name
        if key not in known:
            names = ", ".join(key.rpartition(".")[2] for key in known)
            raise ConfigError(
                f"{of_section}unknown key {_shown(name)}; the keys are: {names}",
                path=(*path, str(name)),
            )
        if key in _SECTIONS:
            found.update(_parse_section(key, value))
        else:
            field, parse = _PARSERS[key]
            found[field] = parse(key, value)
    return found


def _parse_bool(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _error(key, f"expected true or false, not {_shown(value)}")
    return value


def _duration(least_ms: int, most_ms: int, expected: str) -> _Parse:
    """Return what parses durations from one to another."""

    def parse(key: str, value: object) -> int:
        duration_ms = parse_duration(value) if isinstance(value, str) else None
        if duration_ms is not None and least_ms <= duration_ms <= most_ms:
            return duration_ms
        raise _error(key, f"expected a duration {expected}, not {_shown(value)}")

    return parse


def _parse_per_second(key: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1000:
        return value
    raise _error(key, f"expected a number from 1 to 1000, not {_shown(value)}")


def _error(key: str, text: str) -> ConfigError:
    return ConfigError(f"{key}: {text}", path=tuple(key.split(".")))


def _shown(value: object) -> str:
    """Return a value as an error message shows it: on one line and not endless."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_MAX_KEEP_FOR_MS = 36_500 * _DAY_MS

_PARSERS: dict[str, tuple[str, _Parse]] = {
    "contact_on_reset": ("contact_on_reset", _parse_bool),
    "contact_timeout": (
        "contact_timeout_ms",
        _duration(_SECOND_MS, 60 * _SECOND_MS, "from 1s to 60s, such as 10s"),
    ),
    "indexes": ("indexes", _parse_bool),
    "audit.keep_for": (
        "audit_keep_for_ms",
        _duration(_DAY_MS, _MAX_KEEP_FOR_MS, "from 1d to 36500d, such as 400d"),
    ),
    "bulk.max_per_second": ("bulk_max_per_second", _parse_per_second),
    "console.enabled": ("console_enabled", _parse_bool),
    "diagnosis.timeout": (
        "diagnosis_timeout_ms",
        _duration(2 * _SECOND_MS, 60 * _SECOND_MS, "from 2s to 60s, such as 20s"),
    ),
    "history.enabled": ("history_enabled", _parse_bool),
    "history.look_up_servers": ("history_look_up_servers", _parse_bool),
    # Availability is told of the last 14 days.
    "outages.keep_for": (
        "outages_keep_for_ms",
        _duration(14 * _DAY_MS, _MAX_KEEP_FOR_MS, "from 14d to 36500d, such as 90d"),
    ),
}
_SECTIONS = tuple(
    dict.fromkeys(key.partition(".")[0] for key in _PARSERS if "." in key)
)

# Every key, for the test that all of them are documented; that of a section is before
# the dot.
CONFIG_KEYS: tuple[str, ...] = tuple(_PARSERS)
