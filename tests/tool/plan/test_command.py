"""``tool plan`` at the command line; the output in README.md and docs/plan.md is what it prints."""

from __future__ import annotations

import json
import re
import shlex
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tool.cli.app import main

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / name for name in ("README.md", "docs/plan.md", "docs/glm-5.3-flash.md")]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments, "--series", str(ROOT)])


def pasted(page: Path) -> list[tuple[str, str]]:
    """Arguments and output of every ``tool plan`` that the page shows."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    entries = [entry for block in blocks for entry in re.split(r"^\$ ", block, flags=re.MULTILINE)]
    lines = [entry.partition("\n") for entry in entries if entry.startswith("tool plan ")]
    return [(line.removeprefix("tool plan "), output) for line, _, output in lines]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pasted_output_is_what_it_prints(page: Path) -> None:
    found = pasted(page)
    assert found
    for line, output in found:
        command, _, head = line.partition(" | head -n ")
        printed = run(*shlex.split(command)).stdout.splitlines()
        assert printed[: int(head) if head else None] == output.splitlines()


def test_the_partitions_of_the_quickstart_are_its_own() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text()
    rows = re.findall(r"^\| (\d+ × .+?) \| (\d+) \| `([\d,]+)` \|$", page, re.MULTILINE)
    assert len(rows) == 5
    for cards, stages, partition in rows:
        for release in ("v0.5.9", "v0.5.13.post1"):
            gpus = cards.replace(" × ", "x ")
            done = run("--model", "GLM-5.2", "--gpus", gpus, "--sglang-ref", release)
            (line,) = re.findall(rf"^TP8 x PP{stages} +(\S+) .* yes$", done.stdout, re.MULTILINE)
            assert line == partition
            assert f"SGLANG_PP_LAYER_PARTITION={partition} " in done.stdout


def test_no_command_asks_for_what_the_server_chooses() -> None:
    """The fork takes ada_dsa for DeepSeek-V3.2 on sm_12x by itself, in every release."""
    for release in ("v0.5.9", "v0.5.16", "v0.5.17", "v0.5.23"):
        arguments = ("--model", "DeepSeek-V3.2", "--gpus", "16x RTX PRO 6000")
        result = envelope(*arguments, "--sglang-ref", release, code=0)["result"]
        assert result["kernels"].startswith("ada_dsa by default")
        assert result["on_request"] == ""
        assert result["commands"] and "ada_dsa" not in "".join(result["commands"])


def envelope(*arguments: str, code: int) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == code, done.output
    result: dict[str, Any] = json.loads(done.stdout)
    assert (result["command"], result["exit_code"], result["ok"]) == ("plan", code, code == 0)
    return result


def test_json_says_the_same() -> None:
    result = envelope("--model", "GLM-5.2", "--gpus", "32x RTX 4090 48GB", code=0)["result"]
    best = result["layouts"][0]
    assert (best["tp"], best["pp"], best["partition"], best["fits"]) == (
        8,
        4,
        [18, 20, 20, 20],
        True,
    )
    assert result["fewest"] == {"cards": 24, "tp": 8, "pp": 3}
    assert len(result["commands"]) == result["cards"]["nodes"] == 4
    assert result["model"]["path"] in result["commands"][0]
    assert set(result["assumptions"]) >= {"card", "activations", "CUDA graphs", "margin"}
    assert all(sum(stage["weights"].values()) < 48 * 2**30 for stage in best["stages"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["--model", "GLM-5.2", "--gpus", "8x RTX 4090"],
            "Nothing fits. What would: 40 such cards",
        ),
        (["--model", "GLM-5.2", "--gpus", "8x RTX PRO 6000"], "a 4-bit checkpoint"),
        (
            ["--model", "GLM-5.2", "--gpus", "8x H200", "--context", "1M", "--streams", "16"],
            "a smaller --context or --streams",
        ),
        (["--model", "GLM-5.2", "--gpus", "64x A100"], "no fp8 MoE kernel for sm_80"),
        (["--model", "GLM-5.2", "--gpus", "64x sm_75 80GB"], "ada_dsa needs capability 8.0"),
        (["--model", "GLM-5.3-Flash", "--gpus", "8x A100", "--weights", "int4"], "not served"),
        (
            ["--model", "GLM-5.3-Flash", "--gpus", "8x H200", "--sglang-ref", "v0.5.19"],
            "does not have this model; 0.5.20 is the first",
        ),
        (
            ["--model", "GLM-5.2-NVFP4", "--gpus", "24x RTX 4090", "--sglang-ref", "v0.5.12"],
            "runs NVFP4 on sm_100 only; sm_89 needs 0.5.13",
        ),
    ],
)
def test_it_says_why_there_is_no_command(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert says in done.stdout and "launch_server" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "GLM-5.2", "--gpus", "many"], "not a number of cards"),
        (["--model", "GLM-5.2", "--gpus", "8x H200", "--context", "long"], "no number of tokens"),
        (["--model", "GLM-5.2", "--gpus", "8x H200", "--context", "2M"], "not between 1 and"),
        (["--model", "GLM-5.2", "--gpus", "8x H200", "--context", "0"], "not between 1 and"),
        (["--model", "GLM-5.2", "--gpus", "8x H200", "--streams", "0"], "not between 1 and 4096"),
        (["--model", "nonsense", "--gpus", "8x H200"], "neither a folder"),
        (["--model", "GLM-5.2", "--gpus", "8x H200", "--weights", "int3"], "int3"),
        (
            ["--model", "GLM-5.2", "--gpus", "8x H200", "--sglang-ref", "v0.5.8"],
            "no fork of sglang 0.5.8",
        ),
    ],
)
def test_nonsense_is_a_usage_error(arguments: list[str], says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2 and says in done.stderr


def test_no_network_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise OSError("no network here")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert run("--model", "lab/New-DSA", "--gpus", "8x H200").exit_code == 2
    assert run("--model", "GLM-5.2", "--gpus", "8x H200").exit_code == 0
    done = run("--model", "lab/New-DSA", "--gpus", "8x H200", "--fetch-config")
    assert done.exit_code == 6 and "no network here" in done.stderr


def test_a_checkpoint_whose_index_says_otherwise(tmp_path: Path) -> None:
    table = json.loads((ROOT / "tool" / "plan" / "models.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(table["GLM-5.2"]["config"]))
    index = {"metadata": {"total_size": 10**12}, "weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    result = envelope("--model", str(tmp_path), "--gpus", "8x B200", code=1)
    assert "the checkpoint's index says 1000.0 GB" in result["warnings"][0]
