"""Differences between the releases whose patched trees are tested.

Each folder beside this file is an era: a range of releases that use the same names. Every file of an
era runs on every release of it. ``RELEASE`` is the release of the tree that a test runs on.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from packaging.version import Version

VARIABLE = "ADA_RELEASE"
RELEASE = Version(os.environ.get(VARIABLE, "0"))
"""The release of the tree; 0 outside a test of a patched tree."""

ERAS = {
    "nsa": SpecifierSet("<0.5.13"),  # nsa_backend, --nsa-prefill-backend
    "dsa": SpecifierSet(">=0.5.13"),  # dsa_backend, --dsa-prefill-backend
}
OVERLAYS = {
    "transformers-4.57.txt": SpecifierSet("<0.5.10"),  # written for transformers 4 alone
    # These register configurations that later versions of transformers have themselves.
    "transformers-5.12.txt": SpecifierSet(">=0.5.10,<0.5.22"),
}
"""Requirements files in this folder: packages that a release needs in other versions than
tests/constraints.txt has.
"""


def era(release: Version) -> str:
    (found,) = (name for name, specifier in ERAS.items() if release in specifier)
    return found


def overlay(release: Version) -> Path | None:
    """The requirements file to install beside the environment, if the release needs one."""
    for name, specifier in OVERLAYS.items():
        if release in specifier:
            return Path(__file__).with_name(name)
    return None


def at(specifier: str) -> bool:
    """Whether the tree's release is one of these, as in ``at(">=0.5.10,<0.5.13")``."""
    return RELEASE in SpecifierSet(specifier)


def only(specifier: str) -> pytest.MarkDecorator:
    """Mark a test of something that only these releases have."""
    return pytest.mark.skipif(not at(specifier), reason=f"for sglang {specifier}")


DOCTORED = ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (11, 0), (12, 0), (12, 1))
"""GPUs for which a test starts what ``tool doctor`` says: every kind of route that it can print."""


def doctors_route(device: tuple[int, int]) -> tuple[str, dict[str, str]]:
    """What ``tool doctor`` says for a GPU of this compute capability.

    Returns:
        The kind of the route, and by field name the options that ask for ada_dsa; there are none where it
        is the default.
    """
    from tool import plan

    found = plan.route(device[0] * 10 + device[1], RELEASE, fork=True)
    words = found.options.replace("--", "").split()
    options = {
        name.replace("-", "_"): value for name, value in zip(words[::2], words[1::2], strict=True)
    }
    assert bool(options) == (found.kind == "request")
    return found.kind, options
