"""Benchmarks and compile checks; every figure in docs/ comes from a command of this package.

Run them from the repository root, as in ``python -m bench.kernels.run``; the built wheel leaves them out.
"""
