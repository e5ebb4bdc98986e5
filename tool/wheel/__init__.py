"""Wheels: read and write them byte for byte, and put the series and the kernels into a released one.

It may import ``tool.apply`` and what is below it.
"""

from tool.wheel.archive import (
    CHUNK,
    READ_LIMIT,
    NotRegularError,
    Wheel,
    WheelName,
    content_digest,
    open_regular,
    unsafe_name,
)
from tool.wheel.build import ForkParts, build_wheel, describe_patches, prepare_parts
from tool.wheel.overlay import KERNEL_PREFIX, BuiltWheel, check_released, hash_kernels
from tool.wheel.record import RecordRow, parse_record
from tool.wheel.sbom import SBOM_NAME, PatchProvenance, Provenance, parse_sbom
from tool.wheel.version import (
    VERSION_FILE,
    find_missing_requirements,
    fork_version,
    is_fork,
    public_release,
    read_commit,
    read_identity,
    read_requires_python,
    read_version,
    replace_metadata,
    replace_version,
)

__all__ = [
    "BuiltWheel",
    "CHUNK",
    "ForkParts",
    "KERNEL_PREFIX",
    "NotRegularError",
    "PatchProvenance",
    "Provenance",
    "READ_LIMIT",
    "RecordRow",
    "SBOM_NAME",
    "VERSION_FILE",
    "Wheel",
    "WheelName",
    "build_wheel",
    "check_released",
    "content_digest",
    "describe_patches",
    "find_missing_requirements",
    "fork_version",
    "hash_kernels",
    "is_fork",
    "open_regular",
    "parse_record",
    "parse_sbom",
    "prepare_parts",
    "public_release",
    "read_commit",
    "read_identity",
    "read_requires_python",
    "read_version",
    "replace_metadata",
    "replace_version",
    "unsafe_name",
]
