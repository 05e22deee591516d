# SPDX-License-Identifier: Apache-2.0
"""Reading what Synapse knows of its destinations."""
