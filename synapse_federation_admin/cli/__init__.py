# SPDX-License-Identifier: Apache-2.0
"""The command line: `synapse-federation-admin`."""

from synapse_federation_admin.cli.entry import command_line, main

__all__ = ["command_line", "main"]
