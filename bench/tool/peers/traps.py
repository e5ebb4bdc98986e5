"""Small repositories on which a patch can go wrong, and what each tool makes of them on its own.

A trap is one patch and two releases of a few files. The first commands of each workflow are run, and nobody
resolves anything. The tool carries the patch, or it stops for a person, or it ends with success although
the result is wrong.
"""

from __future__ import annotations

import re
import zipfile
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from packaging.version import Version

from bench.tool.peers.tools import Quilt, QuiltMerge, QuiltNoFuzz, Stg, StgMerged, Tool
from bench.tool.peers.workflow import CarriedPatch, Job, Workflow
from tool.git import Git, canonical_diff
from tool.project import Workspace
from tool.upstream.wheel_import import import_wheel

SOURCE: Final = "0.5.9"
ONTO: Final = "0.5.10"
WORKFLOWS: Final[tuple[type[Workflow], ...]] = (
    Tool, Quilt, QuiltNoFuzz, QuiltMerge, Stg, StgMerged,
)  # fmt: skip
POOL: Final = "python/sglang/pool.py"
LIMITS: Final = "python/sglang/limits.py"
BOUNDS: Final = "python/sglang/bounds.py"

_WORDS: Final = "What those that ended with success printed about the patch:"

STEP: Final = """\
    def step(self, x):
        first = x
        second = first
        third = second
        total = x + 1
        fourth = third
        fifth = fourth
        sixth = fifth
        return total, sixth
"""
A: Final = f"class A:\n{STEP}"
B: Final = f"class B:\n{STEP}"
OURS: Final = B.replace("x + 1", "x + 2")
TAIL: Final = (
    '\n\nclass Tail:\n    name = "tail"\n    size = 4\n    kind = "any"\n    last = True\n'
)
TWINS: Final = f"{A}\n\n{B}{TAIL}"
TWINS_OURS: Final = f"{A}\n\n{OURS}{TAIL}"
LIMIT: Final = """\
FIRST = 1
SECOND = 2
THIRD = 3
MARGIN = 4
MARGINS = 5
ensure_limit = abs


def lower(value):
    checked = value
    return max(FIRST, checked)


def upper(value):
    checked = value
    return min(THIRD, checked)


def both(value):
    lowest = lower(value)
    highest = upper(lowest)
    return highest
"""
CLAMP: Final = "def clamp(value):\n    return max(FIRST, min(THIRD, value))\n\n\n"


Files = dict[str, str | None]


@dataclass(frozen=True)
class Trap:
    """One trap. Files are texts by path; None for a file that does not exist.

    Attributes:
        title, expected: what upstream did, and what is right to do, as the table has it.
        ours: the files with the patch on the old release.
        new: the files of the new release.
        right: the files of a right result; None if the tool must stop.
        wrong: says what is wrong with another result.
        taken: upstream has the patch or a part of it, and the tool must say so.
        old: files of the old release that differ from the usual ones.
        quilt: environment variables of quilt; the other tools do not take part.
    """

    title: str
    expected: str
    ours: Files
    new: Files
    right: Files | None
    wrong: Callable[[dict[str, str]], str]
    taken: bool = False
    old: Files = field(default_factory=dict)
    quilt: dict[str, str] = field(default_factory=dict)


def _in_a(files: dict[str, str]) -> str:
    text = files[POOL]
    tail = text.find("class B")
    return "in class A" if "x + 2" in text[: tail if tail > 0 else None] else "lost"


def _twice(files: dict[str, str]) -> str:
    return f"clamp is defined {files[LIMITS].count('def clamp')} times"


def _other(files: dict[str, str]) -> str:
    return "another result"


def _limits(*changes: tuple[str, str]) -> str:
    text = LIMIT
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return text


P: Final = "".join(f"P{i} = {i}\n" for i in range(12))
LOW: Final = ("return max(FIRST, checked)", "return max(FIRST + MARGIN, checked)")
HIGH: Final = ("return highest", "return ensure_limit(highest)")
LOW_TOO: Final = (
    "checked = value\n    return max",
    "checked = ensure_number(value)\n    return max",
)
LARGER: Final = {POOL: TWINS.replace("size = 4", "size = 64 * 1024")}
OTHER_A: Final = ("first = x", "first = int(x)")
STEPS: Final = "    lowest = lower(value)\n    highest = upper(lowest)\n    return highest\n"
DEEPER: Final = (
    "    if value:\n        lowest = lower(value)\n        highest = upper(lowest)\n"
    "        return highest\n"
)
MORE: Final = ("upper(lowest)", "upper(lowest + MARGIN)")

TRAPS: Final = (
    Trap(
        "Two classes with the same method; upstream put twelve lines above them",
        "carry it, in class B",
        {POOL: TWINS_OURS},
        {POOL: P + TWINS},
        {POOL: P + TWINS_OURS},
        _in_a,
    ),
    Trap(
        "Upstream removed class B; class A has the same method",
        "stop",
        {POOL: TWINS_OURS},
        {POOL: A + TAIL},
        None,
        _in_a,
    ),
    Trap(
        "Upstream removed class B; class A has nearly the same method",
        "stop",
        {POOL: TWINS_OURS.replace(*OTHER_A, 1)},
        {POOL: A.replace(*OTHER_A) + TAIL},
        None,
        _in_a,
        old={POOL: TWINS.replace(*OTHER_A, 1)},
    ),
    Trap(
        "Upstream took the patch",
        "say so",
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits(LOW)},
        _other,
        taken=True,
    ),
    Trap(
        "Upstream took the patch; class A has the method as it was",
        "say so",
        {POOL: TWINS_OURS},
        {POOL: TWINS_OURS},
        {POOL: TWINS_OURS},
        _in_a,
        taken=True,
    ),
    Trap(
        "Upstream took it together with a change to the line above",
        "say so",
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits(LOW, LOW_TOO)},
        {LIMITS: _limits(LOW, LOW_TOO)},
        _other,
        taken=True,
    ),
    Trap(
        "Upstream took one hunk of two",
        "say so",
        {LIMITS: _limits(LOW, HIGH)},
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits(LOW, HIGH)},
        _other,
        taken=True,
    ),
    Trap(
        "Upstream took one file of two",
        "say so",
        {LIMITS: _limits(LOW), **LARGER},
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits(LOW), **LARGER},
        _other,
        taken=True,
    ),
    Trap(
        "Upstream has the added function, in another place of the file",
        "say so",
        {LIMITS: _limits(("def lower", CLAMP + "def lower"))},
        {LIMITS: f"{LIMIT}\n\n{CLAMP.rstrip()}\n"},
        {LIMITS: f"{LIMIT}\n\n{CLAMP.rstrip()}\n"},
        _twice,
        taken=True,
    ),
    Trap(
        "Upstream put the lines one block deeper",
        "stop, or carry it one deeper",
        {LIMITS: _limits(MORE)},
        {LIMITS: _limits((STEPS, DEEPER))},
        {LIMITS: _limits((STEPS, DEEPER), MORE)},
        _other,
    ),
    Trap(
        "The same, with `QUILT_PATCH_OPTS=--ignore-whitespace`",
        "stop, or carry it one deeper",
        {LIMITS: _limits(MORE)},
        {LIMITS: _limits((STEPS, DEEPER))},
        {LIMITS: _limits((STEPS, DEEPER), MORE)},
        _other,
        quilt={"QUILT_PATCH_OPTS": "--ignore-whitespace"},
    ),
    Trap(
        "Upstream changed the same line in another workflow",
        "stop",
        {LIMITS: _limits(LOW)},
        {LIMITS: _limits((LOW[0], LOW[1].replace("MARGIN", "MARGINS")))},
        None,
        _other,
    ),
    Trap(
        "Upstream renamed the file",
        "carry it, in the new file",
        {LIMITS: _limits(LOW)},
        {LIMITS: None, BOUNDS: LIMIT},
        {LIMITS: None, BOUNDS: _limits(LOW)},
        _other,
    ),
)


def table(folder: Path) -> str:
    """A Markdown table with a row for each trap, and below what the tools printed about some of them."""
    lines = [
        "| trap | right is to | " + " | ".join(workflow.name for workflow in WORKFLOWS) + " |",
        "|---|---|" + "---|" * len(WORKFLOWS),
    ]
    words: list[str] = []
    for number, trap in enumerate(TRAPS):
        job = _job(trap, folder / f"trap{number}")
        cells, said = [], defaultdict(list)
        for workflow in WORKFLOWS:
            if trap.quilt and not issubclass(workflow, Quilt):
                cells.append("")
                continue
            found = _outcome(trap, job, workflow, folder / f"trap{number}" / workflow.__name__)
            cells.append(found.cell)
            if found.quiet:
                said[found.words or "no word of it"].append(workflow.name)
        lines.append(f"| {trap.title} | {trap.expected} | " + " | ".join(cells) + " |")
        if said:
            words.append(f"- {trap.title}")
            words += [f"  - {', '.join(names)}: {text}" for text, names in said.items()]
    return "\n".join(lines) + f"\n\n{_WORDS}\n\n" + "\n".join(words)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one tool.

    Attributes:
        cell: of the table.
        quiet: whether ``words`` belong below the table: the command ended with success, but the result
            is wrong or upstream had the patch.
        words: the lines of output about the patch.
    """

    cell: str
    quiet: bool
    words: str


def _outcome(trap: Trap, job: Job, workflow: type[Workflow], folder: Path) -> Outcome:
    folder.mkdir()
    one = workflow(job, folder)
    if isinstance(one, Quilt):
        one.push = "-a"
    one.prepare()
    last = one.begin()
    lines = [line.strip() for line in last.output.splitlines() if workflow.words.search(line)]
    said = "; ".join(f"`{line}`" for line in lines)
    if last.code:
        return Outcome("stops", False, said)
    found = one.result()
    if trap.right is not None and found == _tree(job, job.tree(job.new), trap.right):
        if not trap.taken:
            return Outcome("carried", False, said)
        told = re.search(r"\((empty|merged|modified)\)|already applied", said)
        cell = f"finishes, says {told[0].strip('()')}" if told else "finishes **without a word**"
        return Outcome(cell, True, said)
    files = {path: (job.blob(found, path) or b"").decode() for path in (POOL, LIMITS)}
    problem = trap.wrong(files)
    for path, text in files.items():
        try:
            compile(text, path, "exec")
        except SyntaxError as error:
            problem = type(error).__name__
    return Outcome(f"**exit 0, wrong**: {problem}", True, said)


def _job(trap: Trap, folder: Path) -> Job:
    """A small project with two wheels and one patch, in the layout of the real one."""
    cache, data = folder / "cache", folder / "material"
    git = Workspace(cache, data).open_repository()
    base: Files = {POOL: TWINS, LIMITS: LIMIT, **trap.old}
    old, new = (
        import_wheel(git, _wheel(cache / "wheels", version, files), Version(version))
        for version, files in ((SOURCE, base), (ONTO, base | trap.new))
    )
    project = folder / "project"
    (project / "patches").mkdir(parents=True)
    (project / "ada_dsa").mkdir()
    (project / "ada_dsa" / "__init__.py").write_text('"""Kernels."""\n')
    (project / "ada_dsa" / "requirements.txt").write_text("")
    text = f"pin {SOURCE}\nrevision 1\nchange demo >={SOURCE}\n    demo/demo.patch =={SOURCE}\n"
    (project / "series.txt").write_text(text)
    bare = Job(git.git_dir, project, cache, (SOURCE,), SOURCE, ONTO, old, new, (), text, trap.quilt)
    header = (
        "Description: Change something\n Because it is needed.\nOrigin: vendor\nForwarded: no\n"
        f"Releases: =={SOURCE}\nDrop-When: never\n---\n"
    )
    diff = canonical_diff(git, bare.tree(old), _tree(bare, bare.tree(old), trap.ours))
    content = header.encode() + diff
    (project / "patches" / "demo").mkdir(parents=True, exist_ok=True)
    (project / "patches" / "demo" / "demo.patch").write_bytes(content)
    return replace(bare, patches=(CarriedPatch("demo-demo.patch", content, bare.tree(new)),))


def _tree(job: Job, tree: str, files: Files) -> str:
    git = Git(job.repository, index_file=job.repository / "peers-index")
    git.run("read-tree", tree)
    for path, text in files.items():
        row = f"0 {'0' * 40}\t{path}\n"
        if text is not None:
            blob = job.git("hash-object", "-w", "--stdin", stdin=text.encode()).decode().strip()
            row += f"100644 {blob}\t{path}\n"
        git.run("update-index", "--index-info", stdin=row.encode())
    return git.out("write-tree")


def _wheel(folder: Path, version: str, files: Files) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"sglang-{version}-py3-none-any.whl"
    info = f"sglang-{version}.dist-info"
    members = {
        **{k.removeprefix("python/"): v for k, v in files.items() if v is not None},
        "sglang/__init__.py": "",
        "sglang/version.py": f'__version__ = "{version}"\n',
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: sglang\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), text)
    return path
