# SPDX-License-Identifier: Apache-2.0
"""See, explain and repair Matrix federation: a module for the Synapse homeserver.

Enable it in homeserver.yaml:

    modules:
      - module: synapse_federation_admin.FederationAdmin
        config: {}
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synapse_federation_admin.module import FederationAdmin

__version__ = "0.1.0"

__all__ = ["FederationAdmin", "__version__"]


def __getattr__(name: str) -> Any:
    """Import what needs Synapse when it is asked for.

    The command line begins without it, also where it is not installed.
    """
    if name != "FederationAdmin":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from synapse_federation_admin.module import FederationAdmin

    return FederationAdmin
