# SPDX-License-Identifier: Apache-2.0
"""The only code that touches netlink: namespaces, interfaces, tc."""
