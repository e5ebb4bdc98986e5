"""Registers, shared memory and spills of every kernel, compiled for each architecture without a GPU.

The tables go to ``docs/compile-gate.md``.
"""
