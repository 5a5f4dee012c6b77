# SPDX-License-Identifier: Apache-2.0
"""Desired state of a node: VPCs, VTEPs and routes, where they are kept, and which addresses
are free."""
