"""The project on disk: series.txt, the patch files, series.lock, the kernels' files, and lint.

It may import ``tool.git`` and the leaves.
"""

from tool.series import lockfile, patchfile
from tool.series.edit import SeriesText, make_specifier, name_next_file, widen_specifier
from tool.series.kernels import (
    REQUIREMENTS,
    find_kernels,
    parse_requirements,
    read_kernels,
    read_requirements,
)
from tool.series.layout import LOCK_FILE, PATCH_DIR, SERIES_FILE, find_root
from tool.series.lint import lint_series
from tool.series.lockfile import FileChange, Lock, LockedPatch, LockedRelease, LockedWheel
from tool.series.model import Patch, Series, load_series, parse_release, parse_series
from tool.series.patchfile import ROOT, Header, PatchFile

__all__ = [
    "FileChange",
    "Header",
    "LOCK_FILE",
    "Lock",
    "LockedPatch",
    "LockedRelease",
    "LockedWheel",
    "PATCH_DIR",
    "Patch",
    "PatchFile",
    "REQUIREMENTS",
    "ROOT",
    "SERIES_FILE",
    "Series",
    "SeriesText",
    "find_kernels",
    "find_root",
    "lint_series",
    "load_series",
    "lockfile",
    "make_specifier",
    "name_next_file",
    "parse_release",
    "parse_requirements",
    "parse_series",
    "patchfile",
    "read_kernels",
    "read_requirements",
    "widen_specifier",
]
