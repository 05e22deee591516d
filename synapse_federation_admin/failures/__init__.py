# SPDX-License-Identifier: Apache-2.0
"""Why requests to other servers fail."""
