# SPDX-License-Identifier: Apache-2.0
"""Why federation with a server fails: walks the way that a request takes."""
