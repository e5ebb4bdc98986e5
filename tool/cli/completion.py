"""What a shell completes: releases, and patches by file or by change. Silent where there is no project."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click

from tool.errors import ToolError
from tool.series import find_root, load_series, lockfile


def complete_release(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Releases that series.lock holds, and ``pin``."""
    return _complete(ctx, incomplete, lambda root: ("pin", *_list_releases(root)))


def complete_supported(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """As ``complete_release``, where the word ``pin`` is not a release."""
    return _complete(ctx, incomplete, _list_releases)


def _list_releases(root: Path) -> list[str]:
    return [f"v{version}" for version in lockfile.load(load_series(root).lock_path).releases]


def complete_patch(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """Changes and patch files of series.txt."""

    def list_patches(root: Path) -> Iterable[str]:
        series = load_series(root)
        changes = dict.fromkeys(series.change_of(patch).name for patch in series.patches)
        return (*changes, *(patch.name for patch in series.patches))

    return _complete(ctx, incomplete, list_patches)


def _complete(
    ctx: click.Context, incomplete: str, names: Callable[[Path], Iterable[str]]
) -> list[str]:
    try:
        root = ctx.params.get("series_dir") or find_root(Path.cwd())
        return [name for name in names(root) if name.startswith(incomplete)]
    except (ToolError, OSError):
        return []
