"""Finding the fastest block sizes of a model's fp8 GEMMs and fused MoE on a GPU, in sglang's own format.

It may import ``tool.plan``, ``tool.project`` and what is below them.
"""

from tool.tune.files import list_files
from tool.tune.search import Row
from tool.tune.shapes import Shape, list_gemms, list_moes
from tool.tune.tune import Tuned, tune

__all__ = [
    "Row",
    "Shape",
    "Tuned",
    "list_files",
    "list_gemms",
    "list_moes",
    "tune",
]
