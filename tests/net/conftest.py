"""Fixtures for the network tests; what they are made of is in rig.py."""

from rig import each_sidecar, flavour, world

__all__ = ["each_sidecar", "flavour", "world"]
