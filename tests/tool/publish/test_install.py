"""pip and uv install the fork from a published folder; docs/publish.md says what an upgrade does."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.index import serve_files
from tests.support.lab import Lab
from tests.support.shipping import (
    HERE,
    MACHINES,
    NATIVE,
    OTHER,
    make_shippable,
    release_wheels,
    write_stock_index,
)

FORK = "0.5.23+ada.1"
INSTALLERS = (
    "pip",
    pytest.param(
        "uv", marks=pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
    ),
)


@dataclass(frozen=True)
class Site:
    """Addresses of three indexes: the fork's, one that has sglang 0.5.23, and one that has 0.5.24 too."""

    lab: Lab
    folder: Path
    fork: str
    stock: str
    newer: str

    @property
    def constraints(self) -> str:
        return str(self.folder / "constraints-v0.5.23.txt")


@pytest.fixture(params=["html", "json"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def serve(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Site]]:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "uv-cache"))
    make_shippable(lab)
    lab.tool("publish", "--out", str(tmp_path / "release"), "--offline", "-q")
    stock = list(lab.home.wheels.iterdir())
    write_stock_index(tmp_path / "stock", stock)
    write_stock_index(tmp_path / "newer", [*stock, *release_wheels(lab, "0.5.24")])
    folder = tmp_path / "release"
    with serve_files(tmp_path / "stock") as one, serve_files(tmp_path / "newer") as two:
        servers = {
            "html": serve_files(folder),
            "json": serve_files(folder, negotiates=True),
        }
        with servers["html"] as html, servers["json"] as negotiated:
            yield lambda form="html": Site(
                lab, folder, html if form == "html" else negotiated, one, two
            )


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """The interpreter of an empty environment."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(command, check=True)
    return tmp_path / "venv" / "bin" / "python"


def install(installer: str, python: Path, *args: str, indexes: list[str], code: int = 0) -> str:
    """``indexes``: the stock one, and the fork's where it is asked too, as docs/publish.md writes them."""
    if installer == "pip":
        command = [sys.executable, "-m", "pip", "--python", str(python), "install"]
        options = ("--index-url", "--extra-index-url")
    else:
        command = ["uv", "pip", "install", "--python", str(python)]
        options = ("--default-index", "--index")
    given = [word for pair in zip(options, indexes, strict=False) for word in pair]
    done = subprocess.run([*command, *args, *given], capture_output=True, text=True)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def installed(python: Path) -> dict[str, str]:
    """Name → version of what is installed."""
    (site,) = python.parents[1].glob("lib/python*/site-packages")
    found = (path.name.removesuffix(".dist-info") for path in site.glob("*.dist-info"))
    return dict(name.split("-") for name in found)


def resolve(
    spec: str, python: str, machine: str, target: Path, indexes: list[str]
) -> dict[str, str]:
    """Name → file that pip takes for another interpreter and machine."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        spec,
        "--dry-run",
        "--quiet",
        "--report",
        "-",
    ]
    command += ["--target", str(target), "--only-binary=:all:"]
    command += ["--python-version", python.removeprefix("cp"), "--implementation", "cp"]
    command += ["--platform", f"manylinux_2_17_{machine}", "--index-url", indexes[0]]
    command += [word for index in indexes[1:] for word in ("--extra-index-url", index)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        item["metadata"]["name"]: item["download_info"]["url"].rpartition("/")[2]
        for item in json.loads(done.stdout)["install"]
    }


@pytest.mark.parametrize("installer", INSTALLERS)
def test_the_fork_installs_and_verifies(
    serve: Callable[..., Site], python: Path, installer: str, form: str
) -> None:
    site = serve(form)
    indexes = [site.newer, site.fork]
    # -c is what makes the fork win over the newer stock release.
    install(installer, python, "sglang[ray]", "-c", site.constraints, indexes=indexes)
    assert installed(python) == {"sglang": FORK, "triton": "3.6.0", "ray": "2.1"}
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    assert (packages / NATIVE).read_text() == f"{HERE}-{HERE}-manylinux_2_17_{MACHINES[0]}"
    verified = site.lab.json("verify", str(packages), "--offline")["result"]
    assert verified["outcome"] == "proven"


def test_the_wheel_for_another_python_or_machine_is_chosen(
    serve: Callable[..., Site], tmp_path: Path
) -> None:
    site = serve()
    for python, machine in ((OTHER, MACHINES[0]), (HERE, MACHINES[1])):
        found = resolve(
            f"sglang=={FORK}", python, machine, tmp_path / "target", [site.stock, site.fork]
        )
        name = f"sglang-0.5.23%2Bada.1-{python}-{python}-manylinux_2_17_{machine}.whl"
        assert found["sglang"] == name


def test_extras_resolve_as_those_of_stock(serve: Callable[..., Site], tmp_path: Path) -> None:
    site = serve()
    stock, fork = (
        resolve("sglang[ray]==0.5.23", HERE, MACHINES[0], tmp_path / "target", indexes)
        for indexes in ([site.stock], [site.stock, site.fork])
    )
    assert "%2Bada.1-" in fork.pop("sglang") and "ada" not in stock.pop("sglang")
    assert stock == fork and set(fork) == {"triton", "ray"}


@pytest.mark.parametrize("installer", INSTALLERS)
def test_an_upgrade_does_what_the_page_says(
    serve: Callable[..., Site], python: Path, installer: str
) -> None:
    site = serve()
    both = [site.newer, site.fork]
    install(installer, python, f"sglang=={FORK}", indexes=[site.stock, site.fork])

    def upgrade(indexes: list[str], *args: str) -> str:
        """The version of sglang that ``-U sglang`` would leave."""
        told = install(installer, python, "-U", "sglang", "--dry-run", *args, indexes=indexes)
        assert installed(python)["sglang"] == FORK
        found = re.search(r"(?:Would install .*\bsglang-|\+ sglang==)(\S+)", told)
        return found[1] if found else FORK

    outcomes = {
        "the same release of stock": upgrade([site.stock]),
        "a newer release of stock": upgrade([site.newer]),
        "both indexes": upgrade(both),
    }
    # uv takes a package from the first index that has it, and an --index comes before the default one.
    assert outcomes == {
        "the same release of stock": FORK,
        "a newer release of stock": "0.5.24",
        "both indexes": "0.5.24" if installer == "pip" else FORK,
    }
    for indexes in ([site.newer], both):
        assert upgrade(indexes, "-c", site.constraints) == FORK
