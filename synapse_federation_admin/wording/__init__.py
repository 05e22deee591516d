# SPDX-License-Identifier: Apache-2.0
"""Words that the console and the command line share.

Nothing here needs Synapse: the command line runs where it is not installed, too.
"""
