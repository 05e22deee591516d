# SPDX-License-Identifier: Apache-2.0
"""The one room that touches what Synapse keeps private.

Everything else in this package reaches Synapse through `synapse.module_api` or through
this room, so that a Synapse upgrade is a review of it.
"""
