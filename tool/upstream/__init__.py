"""Released sglang: from what a person typed to a base commit, by way of a wheel or a git ref.

It may import ``tool.project`` and what is below it.
"""

from tool.upstream.complete import complete_wheels
from tool.upstream.download import choose_wheel, fetch_wheel, hash_file, select_wheels
from tool.upstream.index import list_available
from tool.upstream.resolve import (
    PYPI,
    Base,
    Request,
    find_release,
    names_release,
    previous_release,
    resolve_base,
    resolve_release,
)
from tool.upstream.wheel_import import PREFIX, is_imported, release_ref

__all__ = [
    "Base",
    "PREFIX",
    "PYPI",
    "Request",
    "choose_wheel",
    "complete_wheels",
    "fetch_wheel",
    "find_release",
    "is_imported",
    "list_available",
    "names_release",
    "previous_release",
    "release_ref",
    "resolve_base",
    "resolve_release",
    "hash_file",
    "select_wheels",
]
