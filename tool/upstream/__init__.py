"""Released sglang: from what a person typed to a base commit, by way of a wheel or a git ref.

It may import ``tool.project`` and what is below it.
"""

from tool.upstream.complete import complete_wheels
from tool.upstream.download import (
    choose_wheel,
    discover_wheels,
    fetch_wheel,
    hash_file,
    list_cached,
    select_wheels,
)
from tool.upstream.index import Yanked, list_available, list_wheels
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
    "Yanked",
    "choose_wheel",
    "complete_wheels",
    "discover_wheels",
    "fetch_wheel",
    "find_release",
    "is_imported",
    "list_available",
    "list_cached",
    "list_wheels",
    "names_release",
    "previous_release",
    "release_ref",
    "resolve_base",
    "resolve_release",
    "hash_file",
    "select_wheels",
]
