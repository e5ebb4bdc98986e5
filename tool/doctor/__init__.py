"""Examining an environment that is to serve the fork: what is there, what it means, what to do.

It may import ``tool.wheel`` and what is below it.
"""

from tool.doctor.diagnose import Diagnosis, Package, describe_gpu, diagnose_environment, format_cuda
from tool.doctor.environment import Environment, SelfTest
from tool.doctor.examine import examine_environment

__all__ = [
    "Diagnosis",
    "Environment",
    "Package",
    "SelfTest",
    "describe_gpu",
    "diagnose_environment",
    "examine_environment",
    "format_cuda",
]
