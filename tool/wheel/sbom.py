"""What a fork wheel says about itself: a CycloneDX 1.6 document in ``.dist-info/sboms/`` (PEP 770).

The main component's pedigree names its ancestor (the released wheel, by purl and sha256) and the
patches in order; each patch file and the kernels are components with hashes of their own.
Properties under ``ada:`` hold what :mod:`tool.verify.verify` needs to compare an installed fork with
``series.lock``: the tree of the patched release, and which files are executable, since an installer
may drop that. They are claims; the verifier relies on none of them before the lock or the files agree.

The document has no time stamp and its serial number follows from its content, so two builds give
the same bytes. It is written here because cyclonedx-python-lib sorts what it writes, and the order of the
patches has a meaning; the tests validate it with that library. Schema: https://cyclonedx.org/docs/1.6/json/
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, cast, get_args
from urllib.parse import quote

from packaging.version import Version

from tool.errors import IntegrityError

SBOM_NAME: Final = "sboms/fork.cdx.json"
"""Path below the dist-info folder."""

PatchKind = Literal["unofficial", "backport", "cherry-pick"]
"""CycloneDX's patch types, without "monkey": this series holds no run-time patch."""

_ORIGINS: Final[Mapping[str, PatchKind]] = {"backport": "backport", "upstream": "cherry-pick"}


@dataclass(frozen=True)
class PatchProvenance:
    """One patch of the series as its DEP-3 header states it.

    ``change`` is the change of series.txt it belongs to; ``forwarded`` and ``applied_upstream`` are
    the header fields, None where absent.
    """

    name: str
    sha256: str
    change: str
    kind: PatchKind
    forwarded: str | None
    applied_upstream: str | None

    @classmethod
    def from_header(
        cls, name: str, sha256: str, change: str, header: Mapping[str, str]
    ) -> PatchProvenance:
        """Read Origin, Forwarded and Applied-Upstream (https://dep-team.pages.debian.net/deps/dep3)."""
        origin = re.split(r"[,\s]", header.get("Origin", "").strip().lower(), maxsplit=1)[0]
        return cls(
            name=name,
            sha256=sha256,
            change=change,
            kind=_ORIGINS.get(origin, "unofficial"),
            forwarded=header.get("Forwarded"),
            applied_upstream=header.get("Applied-Upstream"),
        )

    @property
    def status(self) -> str:
        """``applied-upstream``, ``forwarded`` or ``not-forwarded``."""
        if self.applied_upstream:
            return "applied-upstream"
        answer = (self.forwarded or "no").strip().lower()
        return "not-forwarded" if answer in ("no", "not-needed") else "forwarded"


@dataclass(frozen=True)
class Provenance:
    """Everything the document states.

    ``source`` and ``source_sha256`` are the released wheel; ``tree`` is series.lock's tree of the
    patched release; ``kernel_digest`` is :func:`tool.wheel.archive.content_digest` over
    ``kernel_files`` files, paths relative to the bundle, and ``kernel_tree`` git's tree of them, as
    in the Kernels-Tree trailer of a worktree's last commit; ``executables`` are member names,
    ``requirements`` the Requires-Dist added. ``commit``: the fork is that of a git ref, not of a release.
    """

    version: Version
    release: Version
    source: str
    source_sha256: str
    tree: str
    patches: tuple[PatchProvenance, ...]
    kernel_digest: str
    kernel_tree: str
    kernel_files: int
    executables: tuple[str, ...]
    requirements: tuple[str, ...]
    commit: str | None = None


def render_sbom(facts: Provenance) -> bytes:
    """The document: JSON with sorted keys, two-space indent and a final newline."""
    ancestor = {
        "type": "library",
        "name": "sglang",
        "version": str(facts.release),
        "purl": f"{_purl(facts.release)}?file_name={quote(facts.source, safe='')}",
        "hashes": _hashes(facts.source_sha256),
    }
    pedigree: dict[str, Any] = {
        "ancestors": [ancestor],
        "patches": [_pedigree_patch(p) for p in facts.patches],
    }
    base = []
    if facts.commit is not None:
        pedigree["commits"] = [{"uid": facts.commit}]
        base = [_property("base", f"not a release: {facts.release} with commit {facts.commit}")]
    properties = [
        *base,
        *(_property("executable", path) for path in facts.executables),
        *(_property("requires", requirement) for requirement in facts.requirements),
        _property("source", facts.source),
        _property("tree", facts.tree),
    ]
    kernels = {
        "type": "library",
        "bom-ref": "kernels",
        "name": "ada_dsa",
        "version": str(facts.version),
        "hashes": _hashes(facts.kernel_digest),
        "properties": [
            _property("files", str(facts.kernel_files)),
            _property("tree", facts.kernel_tree),
        ],
    }
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "library",
                "bom-ref": "fork",
                "name": "sglang",
                "version": str(facts.version),
                "purl": _purl(facts.version),
                "pedigree": pedigree,
                "properties": properties,
            }
        },
        "components": [kernels, *(_patch_file(p) for p in facts.patches)],
        "dependencies": [{"ref": "fork", "dependsOn": ["kernels"]}, {"ref": "kernels"}],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    document["serialNumber"] = f"urn:uuid:{serial}"
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()


def parse_sbom(data: bytes, where: str) -> Provenance:
    """The facts of a document that :func:`render` wrote.

    Raises:
        IntegrityError: it is not one, byte for byte.
    """
    try:
        facts = _facts(json.loads(data))
        if render_sbom(facts) != data:
            raise ValueError("the document holds more, or other, than its facts")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as err:
        raise IntegrityError(
            "the provenance is not one this tool wrote",
            where=where,
            why=f"{type(err).__name__}: {err}",
        ) from err
    return facts


def _facts(document: Mapping[str, Any]) -> Provenance:
    fork = document["metadata"]["component"]
    (ancestor,) = fork["pedigree"]["ancestors"]
    kernels, *patches = document["components"]
    (source,), (tree,) = _values(fork, "source"), _values(fork, "tree")
    commits = [str(one["uid"]) for one in fork["pedigree"].get("commits", ())]
    return Provenance(
        version=Version(fork["version"]),
        release=Version(ancestor["version"]),
        source=source,
        source_sha256=_sha256(ancestor),
        tree=tree,
        patches=tuple(_patch(p) for p in patches),
        kernel_digest=_sha256(kernels),
        kernel_tree=_values(kernels, "tree")[0],
        kernel_files=int(_values(kernels, "files")[0]),
        executables=_values(fork, "executable"),
        requirements=_values(fork, "requires"),
        commit=commits[0] if commits else None,
    )


def _pedigree_patch(patch: PatchProvenance) -> dict[str, Any]:
    issue: dict[str, Any] = {
        "type": "enhancement",
        "id": patch.change,
        "name": patch.name,
        "description": patch.status,
    }
    stated = f"{patch.forwarded or ''} {patch.applied_upstream or ''}"
    references = re.findall(r"https://[^\s,;()<>]+", stated)
    if references:
        issue["references"] = references
    return {"type": patch.kind, "diff": {"url": f"patches/{patch.name}"}, "resolves": [issue]}


def _patch_file(patch: PatchProvenance) -> dict[str, Any]:
    properties = [_property("change", patch.change), _property("kind", patch.kind)]
    if patch.forwarded is not None:
        properties.append(_property("forwarded", patch.forwarded))
    if patch.applied_upstream is not None:
        properties.append(_property("applied-upstream", patch.applied_upstream))
    return {
        "type": "file",
        "bom-ref": f"patch:{patch.name}",
        "name": patch.name,
        "hashes": _hashes(patch.sha256),
        "properties": [*properties, _property("status", patch.status)],
    }


def _patch(component: Mapping[str, Any]) -> PatchProvenance:
    kind = _values(component, "kind")[0]
    if kind not in get_args(PatchKind):
        raise ValueError(f"unknown patch kind {kind!r}")
    return PatchProvenance(
        name=component["name"],
        sha256=_sha256(component),
        change=_values(component, "change")[0],
        kind=cast(PatchKind, kind),
        forwarded=next(iter(_values(component, "forwarded")), None),
        applied_upstream=next(iter(_values(component, "applied-upstream")), None),
    )


def _purl(version: Version) -> str:
    return f"pkg:pypi/sglang@{quote(str(version), safe='')}"


def _hashes(sha256: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": sha256}]


def _sha256(component: Mapping[str, Any]) -> str:
    (digest,) = component["hashes"]
    return str(digest["content"])


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"ada:{name}", "value": value}


def _values(component: Mapping[str, Any], name: str) -> tuple[str, ...]:
    return tuple(p["value"] for p in component["properties"] if p["name"] == f"ada:{name}")
