# SPDX-License-Identifier: Apache-2.0
"""What everything that this room does begins with."""

from synapse.module_api import ModuleApi


class Synapse:
    """The Synapse process that this module is loaded into."""

    def __init__(self, api: ModuleApi) -> None:
        self._api = api
        self._hs = api._hs
