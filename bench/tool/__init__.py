"""Time and memory of the fork manager's commands against plain git and against building by hand.

No GPU takes part; every benchmark starts from a warm cache of released wheels.
"""
