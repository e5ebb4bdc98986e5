"""What a patch must not add to a file: leftovers of an editor or a merge, and conflict markers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tool.git import NULL_OID
from tool.series.patchfile import PatchFile

_LEFTOVER: Final = re.compile(
    r".*(\.orig|\.rej|~|\.sw[a-p])|#.*#|\.#.*|.*_(BACKUP|BASE|LOCAL|REMOTE)_\d+.*"
)
_MARKER: Final = re.compile(rb"(<{7}|>{7}|\|{7})([ \t].*)?\r?|={7}\r?")


@dataclass(frozen=True)
class ContentFault:
    """``line`` is the 1-based line in the file as the patch makes it; 0 means the whole file."""

    path: str
    line: int
    message: str


def find_content_faults(patch: PatchFile) -> Iterator[ContentFault]:
    """What ``patch`` adds by mistake. Lines that upstream has already are not looked at."""
    for file in patch.files:
        name = file.path.rpartition("/")[2]
        if file.before == NULL_OID and _LEFTOVER.fullmatch(name):
            yield ContentFault(file.path, 0, "is a leftover of an editor or of a merge")
        for number, line in file.added_lines():
            if _MARKER.fullmatch(line):
                yield ContentFault(file.path, number, "is a conflict marker")
                break
