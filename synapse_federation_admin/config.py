# SPDX-License-Identifier: Apache-2.0
"""The module's configuration: parsed once, at start-up, into a frozen class."""

import re
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import attr
from synapse.module_api.errors import ConfigError

from synapse_federation_admin.durations import parse_duration

OLDEST_SYNAPSE = (1, 140)


# Returns what a value of a key stands for; None if it may not be there.
_Parse = Callable[[object], Any]


def _field(key: str, default: object, expected: str, parse: _Parse) -> Any:
    """Have an attribute for a key of the configuration.

    Args:
        key: Its name; that of a section is before the dot.
        default: What it is where the key is not there.
        expected: What may be there, for people.
        parse: What parses it.
    """
    return attr.ib(
        default=default, metadata={"key": key, "expected": expected, "parse": parse}
    )


def _flag(key: str, *, default: bool) -> Any:
    def parse(value: object) -> bool | None:
        return value if isinstance(value, bool) else None

    return _field(key, default, "true or false", parse)


def _number(key: str, default: int, *, most: int) -> Any:
    def parse(value: object) -> int | None:
        if isinstance(value, bool) or not isinstance(value, int):
            return None
        return value if 1 <= value <= most else None

    return _field(key, default, f"a number from 1 to {most}", parse)


def _duration(key: str, default: str, least: str, most: str) -> Any:
    default_ms, least_ms, most_ms = (
        parse_duration(text) or 0 for text in (default, least, most)
    )

    def parse(value: object) -> int | None:
        found_ms = parse_duration(value) if isinstance(value, str) else None
        return found_ms if found_ms and least_ms <= found_ms <= most_ms else None

    expected = f"a duration from {least} to {most}, such as {default}"
    return _field(key, default_ms, expected, parse)


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
        console_enabled: Whether to serve the console.
        diagnosis_timeout_ms: How long the diagnosis of one destination may take.
        history_enabled: Whether to record outages, and failures of real requests.
        history_look_up_servers: Whether to look up where servers lead that fail, for
            which nobody has asked.
        outages_keep_for_ms: How long to keep outages, and failures of real requests.
            Availability is told of the last 14 days.
    """

    contact_on_reset: bool = _flag("contact_on_reset", default=True)
    contact_timeout_ms: int = _duration("contact_timeout", "10s", "1s", "60s")
    indexes: bool = _flag("indexes", default=False)
    audit_keep_for_ms: int = _duration("audit.keep_for", "400d", "1d", "36500d")
    bulk_max_per_second: int = _number("bulk.max_per_second", 500, most=1000)
    console_enabled: bool = _flag("console.enabled", default=True)
    diagnosis_timeout_ms: int = _duration("diagnosis.timeout", "20s", "2s", "60s")
    history_enabled: bool = _flag("history.enabled", default=True)
    history_look_up_servers: bool = _flag("history.look_up_servers", default=True)
    outages_keep_for_ms: int = _duration("outages.keep_for", "90d", "14d", "36500d")


# Where each key is, by the key's name.
_FIELDS = {field.metadata["key"]: field for field in attr.fields(FederationAdminConfig)}

# Every key, for the test that all of them are documented.
CONFIG_KEYS: tuple[str, ...] = tuple(_FIELDS)


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
    return FederationAdminConfig(**_parse_section((), config))


def _parse_section(path: tuple[str, ...], values: object) -> dict[str, Any]:
    """Return the values of a section, by the names of the attributes above."""
    of_section = f"{'.'.join(path)}: " if path else ""
    if not isinstance(values, Mapping | None):
        raise ConfigError(
            f"{of_section}expected a mapping of configuration keys, not "
            f"{_shown(values)}",
            path=path,
        )
    paths = [tuple(key.split(".")) for key in CONFIG_KEYS]
    known = dict.fromkeys(of[len(path)] for of in paths if of[: len(path)] == path)
    found: dict[str, Any] = {}
    for name, value in (values or {}).items():
        where = (*path, str(name))
        if name not in known:
            raise ConfigError(
                f"{of_section}unknown key {_shown(name)}; the keys are: "
                f"{', '.join(known)}",
                path=where,
            )
        field = _FIELDS.get(".".join(where))
        if field is None:
            found |= _parse_section(where, value)
            continue
        found[field.name] = field.metadata["parse"](value)
        if found[field.name] is None:
            raise ConfigError(
                f"{'.'.join(where)}: expected {field.metadata['expected']}, not "
                f"{_shown(value)}",
                path=where,
            )
    return found


def _shown(value: object) -> str:
    """Return a value as an error message shows it: on one line and not endless."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
