"""Edits of the series by its author: new, refresh, import, drop, and export from a worktree or to upstream.

It may import ``tool.apply`` and what is below it.
"""

from tool.authoring.edit import (
    Author,
    Edited,
    HeaderFields,
    drop_patch,
    import_patch,
    new_patch,
    put_files,
    refresh_patch,
)
from tool.authoring.export import Exported, export_patches
from tool.authoring.pin import Pinned, move_pin
from tool.authoring.upstream_mail import UpstreamMail, write_upstream_mail

__all__ = [
    "Author",
    "Edited",
    "Exported",
    "HeaderFields",
    "Pinned",
    "UpstreamMail",
    "drop_patch",
    "export_patches",
    "import_patch",
    "move_pin",
    "new_patch",
    "put_files",
    "refresh_patch",
    "write_upstream_mail",
]
