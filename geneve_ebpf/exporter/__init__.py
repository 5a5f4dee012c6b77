# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of one node, from a process that is not the one that attaches."""
