# SPDX-License-Identifier: Apache-2.0
"""See, explain and repair Matrix federation: a module for the Synapse homeserver.

Enable it in homeserver.yaml:

    modules:
      - module: synapse_federation_admin.FederationAdmin
        config: {}
"""

from synapse_federation_admin.module import FederationAdmin

__version__ = "0.1.0"

__all__ = ["FederationAdmin", "__version__"]
