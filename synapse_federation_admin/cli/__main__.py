# SPDX-License-Identifier: Apache-2.0
"""The command line as `python -m synapse_federation_admin.cli`."""

from synapse_federation_admin.cli import main

main()
