# SPDX-License-Identifier: Apache-2.0
"""A real Synapse with this module, and remote servers that misbehave."""
