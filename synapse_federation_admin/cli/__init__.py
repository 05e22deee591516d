# SPDX-License-Identifier: Apache-2.0
"""The command line: `synapse-federation-admin`.

In the order in which to read:

    entry, commands, options, manual: how it starts, its commands and their options
    connection, client, login: where the homeserver is, and as whom it is asked
    exits, errors: what goes wrong, in words and for scripts
    output, words: tables and texts
    look, one, why, change, runs: what the commands do, to all, one or many servers
    top, top_parts: the live screen
"""

from synapse_federation_admin.cli.entry import command_line, main

__all__ = ["command_line", "main"]
