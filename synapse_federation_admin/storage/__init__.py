# SPDX-License-Identifier: Apache-2.0
"""The tables of this module's own, in Synapse's database."""
