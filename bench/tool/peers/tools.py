"""The tools that are compared, each used as its manual says: quilt, StGit and ``tool rebase``."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from packaging.version import Version

from bench.tool.peers.workflow import Command, Job, Workflow, environment, flat_name
from tool.series import lockfile


class Quilt(Workflow):
    words = re.compile(r"FAILED|reverse|NOT MERGED|can't find|fuzz|offset|already|ignored|refresh")
    options: tuple[str, ...] = ()
    push = "-af"
    name = "quilt"

    @property
    def work(self) -> Path:
        return self.folder / f"sglang-{self.job.onto}"

    def prepare(self) -> None:
        job = self.job
        for release, commit in ((job.source, job.old), (job.onto, job.new)):
            _unpack(job, commit, self.folder / f"sglang-{release}")
        patches = self.folder / f"sglang-{job.source}" / "patches"
        patches.mkdir()
        for patch in job.patches:
            (patches / patch.name).write_bytes(patch.content)
        (patches / "series").write_text("".join(f"{p.name}\n" for p in job.patches))

    def begin(self) -> Command:
        old = f"../sglang-{self.job.source}/patches"
        self.tally.run(f"cp -r {old} .", self.work, ["cp", "-r", old, "."])
        kept = [p.name for p in self.job.patches if p.wanted]
        if len(kept) < len(self.job.patches):
            text = "".join(f"{name}\n" for name in kept)
            self.tally.edit(self.work / "patches/series", text.encode(), "patches/series")
        return self._quilt("push", self.push, *self.options)

    def stopped(self) -> str | None:
        last = self.tally.commands[-1]
        if last.code == 0:
            return None
        if "needs refresh" not in last.output:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return self._backup().name

    def parent(self, path: str) -> bytes | None:
        kept = self._backup() / path
        file = kept if kept.exists() else self.work / path
        return file.read_bytes() if file.is_file() else None

    def _backup(self) -> Path:
        """Where quilt keeps the topmost patch's files as they were before it."""
        applied = (self.work / ".pc/applied-patches").read_text().split()
        return self.work / ".pc" / applied[-1]

    def prepare_edit(self, paths: list[str]) -> None:
        known = self._backup()
        others = [p for p in paths if not (known / p).exists()]
        if others:  # quilt must know that a file belongs to the patch before it is edited
            self._quilt("add", *others)

    def continue_(self, edited: list[str]) -> Command:
        done = self._quilt("refresh")
        if done.code:
            raise RuntimeError(f"{self.name}: refresh failed\n{self.transcript()}")
        return self._quilt("push", self.push, *self.options)

    def result(self) -> str:
        return _tree_of(self.job, self.work, self.folder / "home")

    def _quilt(self, *args: str) -> Command:
        shown = "".join(f"{k}={v} " for k, v in self.job.quilt.items())
        line = f"{shown}quilt {' '.join(args)}"
        return self.tally.run(line, self.work, ["quilt", *args], self.job.quilt)


class QuiltNoFuzz(Quilt):
    name = "quilt --fuzz=0"
    options = ("--fuzz=0",)


class QuiltMerge(Quilt):
    name = "quilt --merge=diff3"
    options = ("--merge=diff3",)


class Stg(Workflow):
    name = "stgit"
    words = re.compile(r"CONFLICT|[Cc]onflict|\((empty|merged|modified)\)|Error|[Ff]ound \d+")
    options: tuple[str, ...] = ()

    @property
    def work(self) -> Path:
        return self.folder / "sglang"

    def prepare(self) -> None:
        job = self.job
        self.work.mkdir(parents=True)
        env = environment(self.tally.home)

        def run(*command: str) -> None:
            subprocess.run(
                command, cwd=self.work, env=env, check=True, capture_output=True, text=True
            )

        run("git", "init", "-q", "-b", "ada")
        run("git", "fetch", "-q", str(job.repository), f"{job.old}:refs/tags/v{job.source}")
        run("git", "fetch", "-q", str(job.repository), f"{job.new}:refs/tags/v{job.onto}")
        run("git", "reset", "-q", "--hard", f"v{job.source}")
        run("stg", "init")
        mails = self.folder / "mails"
        mails.mkdir()
        for patch in job.patches:
            (mails / patch.name).write_bytes(patch.content)
        (mails / "series").write_text("".join(f"{p.name}\n" for p in job.patches))
        run("stg", "import", "--series", str(mails / "series"))

    def after_copy(self) -> None:
        # Copied files have other inodes, which git would record in the first counted command.
        env = environment(self.tally.home)
        subprocess.run(
            ["git", "status"], cwd=self.work, env=env, check=True, stdout=subprocess.DEVNULL
        )

    def begin(self) -> Command:
        self._stg("branch", "--clone", f"ada-{self.job.onto}")
        gone = [p.name for p in self.job.patches if not p.wanted]
        if gone:
            self._stg("delete", *gone)
        # The push that StGit 0.19 makes after a rebase ends in a traceback at a conflict.
        self._stg("rebase", "--nopush", f"v{self.job.onto}")
        return self._stg("push", "-a", *self.options)

    def stopped(self) -> str | None:
        if self.tally.commands[-1].code == 0:
            return None
        if "onflict" not in self.tally.commands[-1].output:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return self._ask("stg", "top")

    def parent(self, path: str) -> bytes | None:
        return at_head(self.work, path)

    def continue_(self, edited: list[str]) -> Command:
        self._stg("resolved", "-u")  # all files: refresh refuses an index with some of them
        if (done := self._stg("refresh")).code:
            raise RuntimeError(f"{self.name}: refresh failed\n{done.output}")
        more = self._ask("stg", "series", "-U")
        return self._stg("push", "-a", *self.options) if more else done

    def finish(self) -> None:
        self._stg("export", "-d", f"../patches-{self.job.onto}")

    def result(self) -> str:
        subprocess.run(
            ["git", "push", "-q", str(self.job.repository), "HEAD:refs/heads/found", "--force"],
            cwd=self.work,
            env=environment(self.tally.home),
            check=True,
        )
        return self.job.tree("refs/heads/found")

    def _stg(self, *args: str) -> Command:
        return self.tally.run(f"stg {' '.join(args)}", self.work, ["stg", *args])

    def _ask(self, *command: str) -> str:
        done = subprocess.run(
            command,
            cwd=self.work,
            env=environment(self.tally.home),
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        return done.stdout.strip()


class StgMerged(Stg):
    name = "stgit --merged"
    options = ("--merged",)


class Tool(Workflow):
    name = "tool rebase"
    words = re.compile(r"stopped at|already|\.patch +[a-z ]+ +|error|Error")

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def work(self) -> Path:
        return self.project / f"sglang-v{self.job.onto}-rebase"

    def prepare(self) -> None:
        shutil.copytree(self.job.project, self.project)
        refs = [word for v in self.job.known for word in ("--sglang-ref", f"v{v}")]
        self._now("lock", *refs, "--offline", "-q")
        self._now("drift", "--onto", f"v{self.job.onto}", "--offline", "-q", codes=(0, 1))

    def begin(self) -> Command:
        if any(not p.wanted for p in self.job.patches):
            path = self.project / "series.txt"
            self.tally.edit(path, self.job.bounded.encode(), "series.txt")
        return self._tool("rebase", "--onto", f"v{self.job.onto}")

    def stopped(self) -> str | None:
        last = self.tally.commands[-1]
        if last.code == 0:
            return None
        found = re.search(r"^stopped at (\S+):", last.output, re.MULTILINE)
        if last.code not in (3, 4) or found is None:
            raise RuntimeError(f"{self.name} cannot go on\n{self.transcript()}")
        return flat_name(found[1])

    def parent(self, path: str) -> bytes | None:
        return at_head(self.work, path)

    def continue_(self, edited: list[str]) -> Command:
        return self._tool("rebase", "--continue")

    def result(self) -> str:
        locked = lockfile.load(self.project / "series.lock").get(Version(self.job.onto))
        data = self.folder / "data" / "sglang.git"
        self.job.git("fetch", "-q", str(data), locked.patches[-1].commit)
        return locked.final_tree

    def _tool(self, *args: str) -> Command:
        command = [sys.executable, "-m", "tool", *args]
        # The wheels are in the cache, so a person need not type --offline; here it keeps the network out.
        offline = ["--offline"] if "--onto" in args else []
        line = f"tool {' '.join(args)}"
        return self.tally.run(line, self.project, command + offline, self._folders())

    def _now(self, *args: str, codes: tuple[int, ...] = (0,)) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "tool", *args],
            cwd=self.project,
            env=environment(self.tally.home) | self._folders(),
            capture_output=True,
            text=True,
        )
        if done.returncode not in codes:
            raise RuntimeError(f"tool {' '.join(args)}: {done.stdout}{done.stderr}")

    def _folders(self) -> dict[str, str]:
        return {
            "TOOL_CACHE_DIR": str(self.job.cache),
            "TOOL_DATA_DIR": str(self.folder / "data"),
        }


def at_head(folder: Path, path: str) -> bytes | None:
    command = ["git", "cat-file", "blob", f"HEAD:{path}"]
    done = subprocess.run(command, cwd=folder, capture_output=True)
    return None if done.returncode else done.stdout


def _unpack(job: Job, commit: str, folder: Path) -> None:
    folder.mkdir(parents=True)
    archive = job.git("archive", commit)
    subprocess.run(["tar", "x", "-C", str(folder)], input=archive, check=True)


def _tree_of(job: Job, folder: Path, home: Path) -> str:
    """The git tree of a plain folder's ``python/``, without the .rej and .orig files of GNU patch."""
    index = home / "index"
    index.unlink(missing_ok=True)
    env = environment(home) | {
        "GIT_DIR": str(job.repository),
        "GIT_WORK_TREE": str(folder),
        "GIT_INDEX_FILE": str(index),
    }
    litter = [":(exclude)*.rej", ":(exclude)*.orig"]
    add = ["git", "add", "--force", "--", "python", *litter]
    subprocess.run(add, cwd=folder, env=env, check=True)
    done = subprocess.run(
        ["git", "write-tree"], cwd=folder, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    return done.stdout.strip()
