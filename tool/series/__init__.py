"""The project on disk: series.txt, the patch files, series.lock, the kernels' files, and lint.

It may import ``tool.git`` and the leaves.
"""

from tool.series import lockfile, patchfile
from tool.series.content import ContentFault, find_content_faults
from tool.series.edit import (
    SeriesText,
    exclude_release,
    find_stem,
    make_specifier,
    name_next_file,
    widen_needed,
    widen_specifier,
)
from tool.series.foreign_diff import ForeignFile, read_foreign_diff, render_foreign_diff
from tool.series.kernels import (
    REQUIREMENTS,
    find_kernels,
    parse_requirements,
    read_kernels,
    read_requirements,
)
from tool.series.layout import LOCK_FILE, PATCH_DIR, SERIES_FILE, find_root
from tool.series.lint import Finding, lint_series
from tool.series.lockfile import FileChange, Lock, LockedPatch, LockedRelease, LockedWheel
from tool.series.model import (
    Patch,
    Series,
    is_patch_name,
    load_series,
    parse_release,
    parse_series,
)
from tool.series.patchfile import (
    RELEASE_TRAILER,
    ROOT,
    TREE_TRAILER,
    FileDiff,
    Header,
    PatchFile,
)
from tool.series.regular_file import read_regular_file
from tool.series.threads import Thread, find_threads

__all__ = [
    "ContentFault",
    "FileChange",
    "FileDiff",
    "Finding",
    "ForeignFile",
    "Header",
    "LOCK_FILE",
    "Lock",
    "LockedPatch",
    "LockedRelease",
    "LockedWheel",
    "PATCH_DIR",
    "Patch",
    "PatchFile",
    "RELEASE_TRAILER",
    "REQUIREMENTS",
    "ROOT",
    "SERIES_FILE",
    "Series",
    "SeriesText",
    "TREE_TRAILER",
    "Thread",
    "exclude_release",
    "find_content_faults",
    "find_kernels",
    "find_root",
    "find_stem",
    "find_threads",
    "is_patch_name",
    "lint_series",
    "load_series",
    "lockfile",
    "make_specifier",
    "name_next_file",
    "parse_release",
    "parse_requirements",
    "parse_series",
    "patchfile",
    "read_foreign_diff",
    "read_kernels",
    "read_regular_file",
    "read_requirements",
    "render_foreign_diff",
    "widen_needed",
    "widen_specifier",
]
