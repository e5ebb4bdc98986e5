"""Another environment's Python: how it is found, what it inherits, and how its process ends.

It may import ``tool.errors``.
"""

from tool.interpreter.python import (
    describe_ending,
    find_interpreter,
    kill_group,
    last_line,
    make_variables,
)

__all__ = ["describe_ending", "find_interpreter", "kill_group", "last_line", "make_variables"]
