"""Released sglang: from what a person typed to a base commit, by way of a wheel or a git ref.

It may import ``tool.project`` and what is below it.
"""

from tool.upstream.basis import Basis
from tool.upstream.complete import complete_wheels
from tool.upstream.download import (
    choose_wheel,
    discover_wheels,
    fetch_wheel,
    hash_file,
    list_cached,
    select_wheels,
)
from tool.upstream.git_source import GitSource, find_release_tag, mask_login
from tool.upstream.index import Yanked, list_wheels
from tool.upstream.resolve import (
    GIT,
    PYPI,
    Base,
    Request,
    carried_release,
    find_release,
    names_release,
    previous_release,
    resolve_base,
    resolve_beside,
    resolve_ref,
    resolve_release,
)
from tool.upstream.sources import (
    add_source,
    list_sources,
    refresh_sources,
    remove_source,
)
from tool.upstream.wheel_import import PACKAGE, PREFIX, is_imported, release_ref

__all__ = [
    "Base",
    "Basis",
    "GIT",
    "GitSource",
    "PACKAGE",
    "PREFIX",
    "PYPI",
    "Request",
    "Yanked",
    "add_source",
    "carried_release",
    "choose_wheel",
    "complete_wheels",
    "discover_wheels",
    "fetch_wheel",
    "find_release",
    "find_release_tag",
    "is_imported",
    "list_cached",
    "list_sources",
    "list_wheels",
    "mask_login",
    "names_release",
    "previous_release",
    "refresh_sources",
    "remove_source",
    "release_ref",
    "resolve_base",
    "resolve_beside",
    "resolve_ref",
    "resolve_release",
    "hash_file",
    "select_wheels",
]
