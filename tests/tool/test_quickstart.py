"""What README.md and docs/quickstart.md show is so: options, arithmetic, pasted output, tables.

The launch options in docs/quickstart.md are those of the releases; its partitions and its arithmetic are
right. Output pasted into either page agrees with the series, and holds nothing that goes stale.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ada_dsa import index_sharing
from tests.support.trees import CACHE
from tool import errors
from tool.cli.app import SUMMARIES, main
from tool.cli.output import PIPE_CLOSED
from tool.plan import OPTIONS
from tool.series import load_series, lockfile, patchfile

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "docs" / "quickstart.md").read_text()
PAGES = pytest.mark.parametrize("page", [README, QUICKSTART], ids=["README.md", "quickstart.md"])
SERIES = load_series(ROOT)
GLM = SimpleNamespace(num_hidden_layers=78, index_topk_freq=4, index_skip_topk_offset=3)


@pytest.mark.index
@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
def test_every_option_of_a_launch_is_one_of_the_release(
    release: str, released_wheel: Callable[[str], Path]
) -> None:
    launches = re.findall(r"^\$ .*launch_server (.*)$", QUICKSTART, re.MULTILINE)
    options = sorted({word[2:] for line in launches for word in line.split() if word[:2] == "--"})
    assert len(launches) == 3 and "dist-init-addr" in options
    with zipfile.ZipFile(released_wheel(release)) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".py")]
        known = "".join(
            wheel.read(name).decode()
            for name in names
            if name == "sglang/srt/server_args.py"
            or name.startswith("sglang/srt/arg_groups/fields/")
        )
    fields = [option.replace("-", "_") for option in options]
    assert [name for name in fields if not re.search(rf"^    {name}: ", known, re.MULTILINE)] == []


def test_partitions_start_every_stage_on_a_layer_with_an_indexer() -> None:
    found = re.findall(r"^\| .* \| (\d) \| `([\d,]+)` \|$", QUICKSTART, re.MULTILINE)
    full = index_sharing.full_layers(GLM)
    assert len(found) == 5
    for stages, partition in found:
        layers = [int(count) for count in partition.split(",")]
        assert len(layers) == int(stages) and sum(layers) == 78
        assert {sum(layers[:stage]) for stage in range(len(layers))} <= set(full)


def test_memory_is_what_division_gives() -> None:
    number = r"([\d.]+) GB"
    row = (
        rf"^\| (\d+) × [^|]*?\((\d+) GiB\) \| TP8(?: × PP(\d))? \| {number} \| {number} \| {number}"
    )
    rows = re.findall(row, QUICKSTART, re.MULTILINE)
    assert len(rows) == 7
    for cards, size, stages, weights, card, left in rows:
        assert int(cards) == 8 * int(stages or 1)
        each, whole = 753 / int(cards), int(size) * 2**30 / 1e9
        assert (float(weights), float(card)) == (round(each, 1), round(whole, 1))
        assert float(left) == round(whole - each, 1)
    (found,) = re.findall(r"A token takes (\d+) bytes a layer and (\d+) for", QUICKSTART)
    row_bytes, key_bytes = map(int, found)
    assert f"{(20 * row_bytes + 5 * key_bytes) / 1000:.1f} KB" in QUICKSTART
    assert f"{20 * (row_bytes + key_bytes) / 1000:.1f} KB" in QUICKSTART
    assert f"{(20 * row_bytes + 5 * key_bytes) * 131_072 / 1e9:.1f} GB" in QUICKSTART


@PAGES
def test_the_options_are_those_of_tool_doctor(page: str) -> None:
    for _, options in OPTIONS:
        assert f"`{options}`" in page


def pasted(page: str) -> dict[str, list[str]]:
    """The console commands of ``page``, each with the lines printed below it."""
    found: dict[str, list[str]] = {}
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *lines = entry.splitlines()
            found.setdefault(command, []).extend(lines)
    return found


def test_readme_shows_no_hash_and_no_time() -> None:
    text = "\n".join(line for lines in pasted(README).values() for line in lines)
    assert text and re.findall(r"\b[0-9a-f]{12,}\b|\b\d+\.\d+ ?s\b", text) == []


@PAGES
def test_pasted_commits_are_the_patches_of_the_pin(page: str) -> None:
    parsed = [patchfile.parse(p.name, p.content) for p in SERIES.for_release(SERIES.pin)]
    subjects = [patch.header.subject for patch in reversed(parsed)]
    shown = pasted(page)[f"git -C sglang-v{SERIES.pin} log --format=%s"]
    assert shown == ["bundle the ada_dsa kernels", *subjects, f"sglang {SERIES.pin}"]


@PAGES
def test_pasted_wheels_have_the_version_of_the_pin(page: str) -> None:
    (name,) = pasted(page)["ls dist"]
    assert name.startswith(f"sglang-{SERIES.pin}+ada.{SERIES.revision}-cp311-cp311-")
    assert set(re.findall(r"dist/(\S+\.whl)", page)) == {name}


@pytest.mark.index
def test_the_pasted_summary_of_a_step_is_what_drift_prints(
    released_wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    (command,) = [one for one in pasted(README) if one.startswith("tool drift")]
    found = re.fullmatch(r"tool (drift --onto v(\S+) --from v(\S+)) \| head -n 1", command)
    assert found
    for release in found.groups()[1:]:
        released_wheel(release)  # skips when neither cache nor index has it
    # Where the releases were imported before, as in .ci/run, they are taken from there.
    data = os.environ.get("TOOL_DATA_DIR", str(tmp_path / "data"))
    env = {"TOOL_CACHE_DIR": str(CACHE), "TOOL_DATA_DIR": data}
    done = CliRunner().invoke(main, [*found[1].split(), "--series", str(ROOT)], env=env)
    assert done.exit_code == 1, f"{done.output}\n{done.stderr}"  # a patch would need manual work
    assert pasted(README)[command] == done.stdout.splitlines()[:1]


def test_the_pasted_refresh_names_the_file_and_its_releases() -> None:
    lines = pasted(README)[f"tool refresh capability-guards sglang-v{SERIES.pin}"]
    (patch,) = [p for p in SERIES.for_release(SERIES.pin) if p.change == "capability-guards"]
    found = re.fullmatch(r"wrote patches/(\S+)", lines[0])
    assert found and found[1] == patch.name
    changed = re.fullmatch(r"  changed (\S+)", lines[1])
    files = patchfile.parse(patch.name, patch.content).files
    assert changed and changed[1] in [one.path for one in files]
    checked = lockfile.load(SERIES.lock_path).checked_on(patch.name)
    releases = ", ".join(f"v{one}" for one in sorted(checked))
    assert lines[2] == f"checked on {releases}; series.lock is up to date"


def test_readme_lists_every_command_and_every_exit_code() -> None:
    rows = re.findall(r"^\| (`tool .*?) \|", README, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`tool (\w+)", row)}
    assert named == set(SUMMARIES)
    codes = {cls.exit_code for cls in errors.ToolError.__subclasses__()}
    shown = re.findall(r"^\| (\d+) \| \w", README, re.MULTILINE)
    assert {int(code) for code in shown} == codes | {0, 1, PIPE_CLOSED, errors.ToolError.exit_code}
