"""git, StGit, pip and uv under the trials of docs/reliability.md that apply to them.

    python -m bench.reliability.peers [TRIAL ...] [--count N]

``git am`` and ``stg import`` take a series of three mails; ``pip install`` and ``uv pip install`` replace one
wheel by another. What is not installed is left out. Trials: kills, signals, disks (a tmpfs), mails, wheels,
zips, index. The counts are of trials that failed, by the same measure as for the tool.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.support.forks import make_fork, rewrite
from tests.support.index import serve
from tests.support.interruptions import Disk
from tests.support.lab import AGAIN, B_ONLY, EDITED, TREE, TWINS, UTILS, git, write_wheel
from tests.tool.test_hostile_inputs import mutate
from tests.tool.upstream.test_index_failures import PAGES, WIRE
from tests.tool.verify.test_forged_wheels import FORGERIES
from tests.tool.wheel.test_zip_structure import ARCHIVE, NAME, plain
from tests.tool.wheel.test_zip_structure import mutate as mutate_zip

HANG: Final = 60
_BULK: Final = {f"sglang/bulk/m{i}.py": f"x = {i}\n" * 50 for i in range(300)}
"""Enough files for an installation to take a while."""


class Peer:
    """A program at work in ``folder``: what it is told, and what is there."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.prepare()
        self.good = folder.with_name(folder.name + ".good")
        shutil.copytree(folder, self.good, symlinks=True)

    def prepare(self) -> None:
        raise NotImplementedError

    def command(self) -> list[str]:
        raise NotImplementedError

    def look(self) -> object:
        """All that a person sees; never raises."""
        raise NotImplementedError

    def restore(self) -> None:
        for path in list(self.folder.iterdir()):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        shutil.copytree(self.good, self.folder, symlinks=True, dirs_exist_ok=True)

    def start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command(), cwd=self.folder, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip

    def run(self) -> tuple[int, object]:
        return self.start().wait(timeout=HANG), self.look()


class GitAm(Peer):
    name = "git am"

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)
        for path, text in {**TREE, **_BULK}.items():
            (self.folder / "python" / path).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / "python" / path).write_text(text)
        git(self.folder, "init", "-q", "--initial-branch=main")
        for key, value in {"user.name": "Ada", "user.email": "ada@example.invalid"}.items():
            git(self.folder, "config", key, value)
        git(self.folder, "add", ".")
        git(self.folder, "commit", "-qm", "base")
        for number, (path, text) in enumerate(
            [(UTILS, EDITED), (UTILS, AGAIN), (TWINS, B_ONLY)], start=1
        ):
            (self.folder / path).write_text(text)
            git(self.folder, "commit", "-qam", f"change {number}\n\nIt is needed.")
        git(self.folder, "format-patch", "-q", "-3", "-o", ".git/mails")
        mails = sorted((self.folder / ".git/mails").iterdir())
        mbox = b"".join(path.read_bytes() for path in mails)
        (self.folder / ".git/mails/all.mbox").write_bytes(mbox)
        git(self.folder, "reset", "-q", "--hard", "HEAD~3")

    def command(self) -> list[str]:
        mails = sorted(str(path) for path in (self.folder / ".git/mails").glob("*.patch"))
        return ["git", "am", "--quiet", "--3way", "--committer-date-is-author-date", *mails]

    def look(self) -> object:
        folder = self.folder
        try:
            head, status = git(folder, "rev-parse", "HEAD^{tree}"), git(folder, "status", "-s")
        except subprocess.CalledProcessError as error:
            return error.stderr
        left = [n for n in ("rebase-apply", "index.lock") if (folder / ".git" / n).exists()]
        return head, status, left


class StgImport(GitAm):
    name = "stg import"

    def prepare(self) -> None:
        super().prepare()
        subprocess.run(["stg", "init"], cwd=self.folder, check=True, capture_output=True)

    def command(self) -> list[str]:
        return ["stg", "import", "--mbox", ".git/mails/all.mbox"]

    def look(self) -> object:
        done = subprocess.run(["stg", "series"], cwd=self.folder, capture_output=True, text=True)
        return super().look(), done.stdout, done.returncode


class Pip(Peer):
    name = "pip install"

    def prepare(self) -> None:
        self.folder.mkdir(parents=True)
        make = [sys.executable, "-m", "venv", "--without-pip", str(self.folder / "venv")]
        subprocess.run(make, check=True)
        old = {n: t.replace("x =", "y =") for n, t in _BULK.items()}
        self.old = write_wheel(self.folder / "old", "0.5.23", {**TREE, **old})
        self.new = write_wheel(self.folder / "new", "0.5.24", {**TREE, **_BULK})
        subprocess.run(self.install(self.old), check=True, capture_output=True, cwd=self.folder)

    def install(self, wheel: Path) -> list[str]:
        pip = [sys.executable, "-m", "pip", "--python", str(self.folder / "venv/bin/python")]
        return [*pip, "install", "--no-deps", "--no-index", "--no-compile", str(wheel)]

    def command(self) -> list[str]:
        return self.install(self.new)

    def look(self) -> object:
        (site,) = (self.folder / "venv/lib").glob("python*/site-packages")
        return {
            str(path.relative_to(site)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(site.rglob("*"))
            if path.is_file() and path.name not in ("direct_url.json", "uv_cache.json", "RECORD")
        }


class Uv(Pip):
    name = "uv pip install"

    def install(self, wheel: Path) -> list[str]:
        python = str(self.folder / "venv/bin/python")
        options = ["--python", python, "--no-deps", "--no-index"]
        return [
            "uv",
            "--cache-dir",
            str(self.folder / "cache"),
            "pip",
            "install",
            *options,
            str(wheel),
        ]


PEERS: Final[tuple[type[Peer], ...]] = (GitAm, StgImport, Pip, Uv)


@dataclass
class Counts:
    tried: int = 0
    torn: int = 0
    failed: int = 0

    def __str__(self) -> str:
        return f"{self.torn} torn, {self.failed} failed next, of {self.tried}"


def interrupt(peer: Peer, count: int, how: Callable[[Peer, random.Random, float], None]) -> Counts:
    """Interrupt the command ``count`` times; look, and give it again."""
    old = peer.look()
    begin = time.monotonic()
    code, new = peer.run()
    seconds = time.monotonic() - begin
    assert code == 0 and new != old, f"{peer.name} fails without an interruption"
    rng = random.Random(peer.name)
    counts = Counts()
    for _ in range(count):
        peer.restore()
        how(peer, rng, seconds)
        counts.tried += 1
        found = peer.look()
        counts.torn += found not in (old, new)
        if found != new:  # where everything was done, the command may say so
            again = peer.run()
            counts.failed += again != (0, new)
    return counts


def kill(peer: Peer, rng: random.Random, seconds: float) -> None:
    _send(peer, rng.uniform(0.1, 1.0) * seconds, signal.SIGKILL)


def press(peer: Peer, rng: random.Random, seconds: float) -> None:
    _send(peer, rng.uniform(0.1, 1.0) * seconds, signal.SIGINT)


def _send(peer: Peer, delay: float, number: signal.Signals) -> None:
    process = peer.start()
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    process.wait(timeout=HANG)


def fill(disk: Disk, needed: int) -> Callable[[Peer, random.Random, float], None]:
    def run(peer: Peer, rng: random.Random, seconds: float) -> None:
        disk.leave(rng.randrange(needed))
        peer.start().wait(timeout=HANG)
        disk.leave(None)

    return run


def try_interruptions(
    work: Path, count: int, how: Callable[[Peer, random.Random, float], None]
) -> Iterator[tuple[str, str]]:
    for kind in _available():
        yield kind.name, str(interrupt(kind(work / kind.__name__), count, how))


def try_disks(work: Path, count: int) -> Iterator[tuple[str, str]]:
    for kind in _available():
        disk = Disk(work / f"disk{kind.__name__}")
        try:
            peer = kind(disk.folder / "work")
            begun = disk.used()
            peer.run()
            needed = max(disk.used() - begun, 1 << 16)
            peer.restore()
            yield kind.name, str(interrupt(peer, count, fill(disk, needed)))
        finally:
            disk.unmount()


def try_mails(work: Path, count: int) -> Iterator[tuple[str, str]]:
    """Damaged mails: after a refusal the repository is as it was, and after a success it has a commit."""
    for kind in _available(GitAm, StgImport):
        peer = kind(work / kind.__name__)
        mail = (sorted((peer.folder / ".git/mails").glob("*.patch"))[0]).read_bytes()
        old, left, taken = peer.look(), 0, 0
        for number in range(count):
            (peer.folder / ".git/mail").write_bytes(mutate(mail, random.Random(f"mail {number}")))
            words = ["git", "am", "--quiet", "--3way"]
            command = words if kind is GitAm else ["stg", "import", "--mail"]
            done = subprocess.run(
                [*command, ".git/mail"], cwd=peer.folder, capture_output=True, timeout=HANG
            )
            found = peer.look()
            taken += done.returncode == 0
            left += done.returncode != 0 and found != old
            if found != old:
                peer.restore()
        yield kind.name, f"{taken} taken; {left} refused and not as before, of {count}"


def try_wheels(work: Path, count: int) -> Iterator[tuple[str, str]]:
    """Forged wheels of the fork, each with a RECORD that fits: how many are installed."""
    fork = make_fork(_made(work / "fork"))
    built = fork.build(work / "out").path
    data = built.read_bytes()
    names = list(FORGERIES)[: count or None]
    for kind in _available(Pip, Uv):
        peer = kind(work / kind.__name__)
        installed = 0
        for name in names:
            built.write_bytes(data)
            rewrite(built, FORGERIES[name].change, record=True)
            done = subprocess.run(peer.install(built), cwd=peer.folder, capture_output=True)  # type: ignore[attr-defined]
            installed += done.returncode == 0
            peer.restore()
        yield kind.name, f"{installed} installed without a word, of {len(names)}"


def try_zips(work: Path, count: int) -> Iterator[tuple[str, str]]:
    """Fuzzed zip structures: how many pip and uv both install, with different files."""
    work.mkdir(exist_ok=True)
    seen: dict[str, dict[int, object]] = {}
    for kind in _available(Pip, Uv):
        peer = kind(work / kind.__name__)
        subprocess.run(["rm", "-rf", str(peer.folder / "cache")], check=True)
        found = seen[kind.name] = {}
        for seed in range(count):
            choose = random.Random(seed)
            path = work / NAME
            path.write_bytes(mutate_zip(choose.choice((ARCHIVE, plain(deflated=False))), choose))
            peer.restore()
            command = [*peer.install(path), "--force-reinstall"]  # type: ignore[attr-defined]
            if subprocess.run(command, cwd=peer.folder, capture_output=True).returncode == 0:
                found[seed] = peer.look()
        yield kind.name, f"{len(found)} installed, of {count}"
    if len(seen) == 2:
        one, two = seen.values()
        both = one.keys() & two.keys()
        differ = sum(_content(one[seed]) != _content(two[seed]) for seed in both)
        yield "pip and uv", f"{differ} installed by both with different files, of {len(both)}"


def _content(found: object) -> object:
    assert isinstance(found, dict)
    return {n: h for n, h in found.items() if n.startswith("sglang/")}


def try_index(work: Path, count: int) -> Iterator[tuple[str, str]]:
    """An index whose page fails: how often pip and uv say that there is no such release."""
    answers = {**WIRE, **PAGES}
    names = list(answers)[: count or None]
    for kind in _available(Pip, Uv):
        peer = kind(work / kind.__name__)
        confused = traced = taken = 0
        with serve(work / f"index{kind.__name__}") as index:
            write_wheel(index.folder, "0.5.24", TREE)
            command = [w for w in peer.install(Path("sglang==0.5.24")) if w != "--no-index"]  # type: ignore[attr-defined]
            command += ["--index-url", index.url]
            env = os.environ | {"PIP_DEFAULT_TIMEOUT": "2", "UV_HTTP_TIMEOUT": "2"}
            env |= {"PIP_RETRIES": "0", "UV_HTTP_RETRIES": "0", "PIP_CONFIG_FILE": "/dev/null"}
            for name in names:
                index.on_page = answers[name]
                done = subprocess.run(command, env=env, cwd=peer.folder, capture_output=True)
                words = done.stderr.decode("utf-8", "replace")
                taken += done.returncode == 0
                traced += "Traceback" in words
                confused += any(
                    text in words
                    for text in ("No matching distribution", "not found in the package registry")
                )
                if done.returncode == 0:
                    peer.restore()
        yield (
            kind.name,
            (
                f"{confused} called a release that does not exist, {traced} tracebacks, {taken} installed, "
                f"of {len(names)}"
            ),
        )


def _available(*kinds: type[Peer]) -> list[type[Peer]]:
    programs = {GitAm: "git", StgImport: "stg", Pip: sys.executable, Uv: "uv"}
    return [kind for kind in kinds or PEERS if shutil.which(programs[kind])]


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


TRIALS: Final[Mapping[str, Callable[[Path, int], Iterator[tuple[str, str]]]]] = {
    "kills": lambda work, count: try_interruptions(work, count, kill),
    "signals": lambda work, count: try_interruptions(work, count, press),
    "disks": try_disks,
    "mails": try_mails,
    "wheels": try_wheels,
    "zips": try_zips,
    "index": try_index,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("trials", nargs="*", metavar="TRIAL", help=", ".join(TRIALS))
    parser.add_argument("--count", type=int, default=40)
    options = parser.parse_args(arguments)
    print("| trial | program | what was found |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as temp:
        private = {"HOME": temp, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
        os.environ.update(private)
        for name in options.trials or TRIALS:
            for program, found in TRIALS[name](_made(Path(temp) / name), options.count):
                print(f"| {name} | {program} | {found} |", flush=True)


if __name__ == "__main__":
    main()
