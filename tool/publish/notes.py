"""Release notes, made from the headers of the patches, series.txt and the changelog."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from packaging.version import Version

from tool.series import Header, Patch, Series, patchfile

_UPSTREAM: Final = "https://github.com/sgl-project/sglang"
_FIELDS: Final = ("Applied-Upstream", "Forwarded", "Origin")
"""Fields of a header that say where upstream stands, in the order in which the notes quote them."""


def render_notes(
    series: Series, versions: Mapping[Version, Version], changelog: str | None
) -> bytes:
    """Markdown for a person who installs what was published.

    Args:
        versions: each published release and the fork's version of it, ascending.
        changelog: the text of CHANGELOG.md. Its first section is quoted.
    """
    names = ", ".join(str(version) for version in versions.values())
    lines = [f"# sglang {names}", "", "## Install", "", "```console"]
    for release, version in versions.items():
        lines.append(f'$ pip install "sglang=={version}" -c constraints-v{release}.txt \\')
        lines.append("    --extra-index-url URL_OF_THIS_FOLDER/simple/")
    lines += ["```", ""]
    lines += _list_changes(series, list(versions))
    if changelog is not None:
        lines += _quote_changelog(changelog)
    return ("\n".join(lines).rstrip("\n") + "\n").encode()


def _list_changes(series: Series, releases: Sequence[Version]) -> Iterator[str]:
    """A section for each change that a published release has, and a line for each that none has."""
    yield from ("## Changes to sglang", "")
    retired = []
    for change in series.changes:
        patches = {
            release: patch
            for release in releases
            for patch in series.for_release(release)
            if patch.change == change.name
        }
        if patches:
            yield from _describe_change(change.name, patches, releases)
        elif change.upstream:
            retired.append(f"- {change.name}: upstream has it since {change.upstream}")
    if retired:
        yield from ("## Changes that upstream has", "", *retired, "")


def _describe_change(
    name: str, patches: Mapping[Version, Patch], releases: Sequence[Version]
) -> Iterator[str]:
    """The words are those of the newest release's patch; a fence keeps them as they are."""
    newest = patches[max(patches)]
    header = patchfile.parse(newest.name, newest.content).header
    yield from (f"### {header.subject}", "", f"Change `{name}`, patch `patches/{newest.name}`.")
    if len(patches) < len(releases):
        yield f"Only in: {', '.join(str(release) for release in patches)}."
    if header.body:
        yield from ("", "```text", header.body, "```")
    yield from ("", *_list_references(header), "")


def _list_references(header: Header) -> Iterator[str]:
    for field in _FIELDS:
        first, _, rest = (header.get(field) or "").partition("\n")
        if first and first != "vendor":
            text = f"{first.rstrip('.')}. {' '.join(rest.split())}" if rest else first
            yield f"- {field}: {_link_threads(text)}"


def _link_threads(text: str) -> str:
    """``#123`` becomes a link to that thread of upstream."""
    return re.sub(r"(?<![\w/])#([0-9]+)", rf"[#\1]({_UPSTREAM}/issues/\1)", text)


def _quote_changelog(text: str) -> Iterator[str]:
    """The first section, one level deeper. Links to files of the repository would lead nowhere."""
    sections = re.split(r"^## ", text, flags=re.MULTILINE)
    if len(sections) < 2:
        return
    title, _, body = sections[1].partition("\n")
    body = re.sub(r"^#", "##", body, flags=re.MULTILINE)
    body = re.sub(r"\[([^\]]*)\]\((?!https?:)[^)]*\)", r"\1", body)
    yield from (f"## Changelog: {title}", body.rstrip("\n"))
