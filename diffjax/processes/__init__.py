"""Noising processes and their bridges, one space a file.

`base` says what a process is; `gaussian` (with `predictions`) is the plane case.
"""

from diffjax.processes.base import Process, joint, masked, require

__all__ = ["Process", "joint", "masked", "require"]
