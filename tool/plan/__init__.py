"""Which kernels serve on a GPU, and the options that ask for them.

It may import the leaves.
"""

from tool.plan.routes import GATED, OLDEST_SM, OPTIONS, OVERRIDE, Route, options, route

__all__ = [
    "GATED",
    "OLDEST_SM",
    "OPTIONS",
    "OVERRIDE",
    "Route",
    "options",
    "route",
]
