# SPDX-License-Identifier: Apache-2.0
"""The module's configuration, and which Synapse it accepts."""

from typing import Any

import pytest
from synapse.module_api.errors import ConfigError
from synapse.util.module_loader import load_module

from synapse_federation_admin import FederationAdmin
from synapse_federation_admin.config import (
    CONFIG_KEYS,
    FederationAdminConfig,
    require_supported_synapse,
)

pytestmark = pytest.mark.one_synapse


@pytest.mark.parametrize("empty", [None, {}])
def test_defaults(empty: Any) -> None:
    """Every key is optional."""
    assert FederationAdmin.parse_config(empty) == FederationAdminConfig(
        contact_on_reset=True,
        contact_timeout_ms=10_000,
        indexes=False,
        audit_keep_for_ms=400 * 86_400_000,
        bulk_max_per_second=500,
    )


def test_values() -> None:
    """What is given is taken; durations become ms."""
    config = FederationAdmin.parse_config(
        {
            "contact_on_reset": False,
            "contact_timeout": "1m",
            "indexes": True,
            "audit": {"keep_for": "2w"},
            "bulk": {"max_per_second": 7},
            "history": {"enabled": False, "look_up_servers": False},
        }
    )
    assert config == FederationAdminConfig(
        contact_on_reset=False,
        contact_timeout_ms=60_000,
        indexes=True,
        audit_keep_for_ms=14 * 86_400_000,
        bulk_max_per_second=7,
        history_enabled=False,
        history_look_up_servers=False,
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"contact_on_rest": True}, "contact_on_rest"),
        ({1: True}, "unknown key 1"),
        ({"x" * 1000: True}, "unknown key"),
        ({"contact_on_reset": "yes"}, "contact_on_reset: expected true or false"),
        ({"contact_on_reset": None}, "contact_on_reset: expected true or false"),
        ({"indexes": "yes"}, "indexes: expected true or false"),
        ({"contact_timeout": 10}, "contact_timeout: expected a duration"),
        ({"contact_timeout": "0s"}, "from 1s to 60s"),
        ({"contact_timeout": "61s"}, "from 1s to 60s"),
        ({"contact_timeout": "99999999999m"}, "from 1s to 60s"),
        ({"contact_timeout": "ten"}, "not 'ten'"),
        ({"contact_timeout": None}, "not None"),
        (["contact_on_reset"], "expected a mapping"),
        ({"audit": "400d"}, "audit: expected a mapping"),
        ({"audit": {"keep": "1d"}}, "audit: unknown key 'keep'; the keys are: k"),
        ({"audit.keep_for": "1d"}, "unknown key 'audit.keep_for'"),
        ({"audit": {"keep_for": "12h"}}, "audit.keep_for: expected a duration from 1d"),
        ({"bulk": {"max_per_second": 0}}, "bulk.max_per_second: expected a number"),
        ({"bulk": {"max_per_second": True}}, "bulk.max_per_second: expected a number"),
        ({"bulk": {"max_per_second": "5"}}, "bulk.max_per_second: expected a number"),
    ],
)
def test_wrong(config: Any, expected: str) -> None:
    """What is wrong is a ConfigError that names the key and what was expected."""
    with pytest.raises(ConfigError) as error:
        FederationAdmin.parse_config(config)
    assert expected in error.value.msg
    assert len(error.value.msg) < 250


def test_synapse_names_the_path() -> None:
    """Synapse, when it shows the error, points at the key in homeserver.yaml."""
    with pytest.raises(ConfigError) as error:
        load_module(
            {
                "module": "synapse_federation_admin.FederationAdmin",
                "config": {"contact_timeout": "1d"},
            },
            ("modules", "<item 0>"),
        )
    assert list(error.value.path or ()) == [
        *("modules", "<item 0>", "config", "contact_timeout")
    ]


def test_unknown_key_lists_the_keys() -> None:
    """A misspelt key is answered with those that there are."""
    with pytest.raises(ConfigError) as error:
        FederationAdmin.parse_config({"contact": True})
    assert all(key.split(".")[0] in error.value.msg for key in CONFIG_KEYS)


@pytest.mark.parametrize("version", ["1.139.2", "1.99.0", "0.99.5", "1.139.0rc1"])
def test_old_synapse(version: str) -> None:
    """A Synapse that is too old is refused with a sentence that names both versions."""
    with pytest.raises(ConfigError) as error:
        require_supported_synapse(version)
    assert version in error.value.msg
    assert "needs Synapse 1.140 or later" in error.value.msg


@pytest.mark.parametrize("version", ["1.140.0", "1.163.2", "1.200.0rc1", "2.0", None])
def test_new_synapse(version: str | None) -> None:
    """The oldest supported Synapse, later ones and the installed one are accepted."""
    require_supported_synapse(version)
