# SPDX-License-Identifier: Apache-2.0
"""The module's configuration: parsed once, at start-up, into frozen classes."""

import re
from collections.abc import Mapping
from typing import Any

import attr
from synapse.module_api.errors import ConfigError

_UNIT_MS = {"s": 1000, "m": 60_000}
_DURATION = re.compile(r"([0-9]{1,12})([sm])")


@attr.s(slots=True, frozen=True, auto_attribs=True)
class FederationAdminConfig:
    """What `modules: [{module: ..., config: {...}}]` holds.

    Attributes:
        contact_on_reset: Whether `reset_connection` makes one real request to the
            destination, in the background.
        contact_timeout_ms: How long a destination has to answer that request.
        indexes: Whether to create the optional indexes on Synapse's `destinations`.
    """

    contact_on_reset: bool = True
    contact_timeout_ms: int = 10_000
    indexes: bool = False


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
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ConfigError(
            f"expected a mapping of configuration keys, not {_shown(config)}"
        )
    for key in config:
        if key not in _PARSERS:
            raise ConfigError(
                f"unknown key {_shown(key)}; the keys are: {', '.join(CONFIG_KEYS)}",
                path=(str(key),),
            )
    return FederationAdminConfig(
        **{
            field: parse(key, config[key])
            for key, (field, parse) in _PARSERS.items()
            if key in config
        }
    )


def _parse_bool(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(
            f"{key}: expected true or false, not {_shown(value)}", path=(key,)
        )
    return value


def _parse_contact_timeout(key: str, value: object) -> int:
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match:
        milliseconds = int(match[1]) * _UNIT_MS[match[2]]
        if 1000 <= milliseconds <= 60_000:
            return milliseconds
    raise ConfigError(
        f"{key}: expected a duration from 1s to 60s, such as 10s, not {_shown(value)}",
        path=(key,),
    )


def _shown(value: object) -> str:
    """Return a value as an error message shows it: on one line and not endless."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


_PARSERS: dict[str, tuple[str, Any]] = {
    "contact_on_reset": ("contact_on_reset", _parse_bool),
    "contact_timeout": ("contact_timeout_ms", _parse_contact_timeout),
    "indexes": ("indexes", _parse_bool),
}

# Every key, for error messages and for the test that all of them are documented.
CONFIG_KEYS: tuple[str, ...] = tuple(_PARSERS)
