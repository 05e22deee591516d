# SPDX-License-Identifier: Apache-2.0
"""Which releases of Synapse this module runs in."""

import re
from importlib.metadata import version

from synapse.module_api.errors import ConfigError

OLDEST_SYNAPSE = (1, 140)


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
