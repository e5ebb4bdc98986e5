"""What the plan says about releases is so in their wheels."""

from __future__ import annotations

import ast
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packaging.version import Version

from tool.plan import find_model, make_plan, parse_gpus
from tool.plan.layouts import SENDS_SELECTION, divide_evenly
from tool.plan.memory import EVERY_LAYER_KEEPS_KEYS
from tool.plan.plan import FIRST_GLM5_NEXT, FIRST_MARLIN_NVFP4

pytestmark = pytest.mark.index
Wheels = Callable[[str], Path]


def source(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        member = f"sglang/srt/{name}"
        return archive.read(member).decode() if member in archive.namelist() else ""


@pytest.mark.parametrize(
    ("first", "before", "file", "text"),
    [
        (SENDS_SELECTION, "0.5.13.post1", "models/deepseek_v2.py", r'tensors\["topk_indices"\]'),
        (
            EVERY_LAYER_KEEPS_KEYS[1],
            "0.5.17",
            "model_executor/pool_configurator.py",
            "dsa_layer_skips_topk",
        ),
        (FIRST_GLM5_NEXT, "0.5.19", "models/glm5_next.py", "class Glm5Next"),
        (
            FIRST_MARLIN_NVFP4,
            "0.5.12.post1",
            "layers/quantization/modelopt_quant.py",
            "prepare_moe_(nv)?fp4_layer_for_marlin",
        ),
    ],
)
def test_the_first_release_that_has_it(
    first: Version, before: str, file: str, text: str, released_wheel: Wheels
) -> None:
    assert re.search(text, source(released_wheel(str(first)), file))
    assert not re.search(text, source(released_wheel(before), file))


@pytest.mark.parametrize("release", ["0.5.9", "0.5.23"])
def test_sglang_divides_layers_so(
    release: str, released_wheel: Wheels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SGLANG_PP_LAYER_PARTITION", raising=False)
    tree = ast.parse(source(released_wheel(release), "distributed/utils.py"))
    (function,) = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name == "get_pp_indices"
    ]
    function.returns = None
    names: dict[str, Any] = {"os": os}
    exec(compile(ast.Module([function], []), "utils.py", "exec"), names)
    for layers in (45, 61, 78):
        for stages in range(1, 17):
            spans = [names["get_pp_indices"](layers, rank, stages) for rank in range(stages)]
            assert divide_evenly(layers, stages) == tuple(end - first for first, end in spans)


@pytest.mark.parametrize("release", ["0.5.9", "0.5.12.post1", "0.5.13", "0.5.21", "0.5.23"])
def test_every_option_of_a_command_is_one_of_the_release(
    release: str, released_wheel: Wheels
) -> None:
    commands = []
    for model, weights, gpus in (
        ("GLM-5.2", "fp8", "32x RTX 4090 48GB"),
        ("GLM-5.2", "int4", "8x A100"),
        ("DeepSeek-V3.2", "fp8", "16x RTX PRO 6000"),
        ("GLM-5.3-Flash", "fp8", "8x H200"),
    ):
        plan = make_plan(
            find_model(model, weights), parse_gpus(gpus), Version(release), context=8192
        )
        assert plan.commands or Version(release) < FIRST_GLM5_NEXT and "Flash" in model
        commands += plan.commands
    with zipfile.ZipFile(released_wheel(release)) as wheel:
        known = "".join(
            wheel.read(name).decode()
            for name in wheel.namelist()
            if re.fullmatch(r"sglang/srt/(server_args|arg_groups/fields/\w+)\.py", name)
        )
    options = {word[2:] for line in commands for word in line.split() if word[:2] == "--"}
    assert {"tp-size", "dist-init-addr", "context-length"} <= options
    fields = sorted(option.replace("-", "_") for option in options)
    assert [name for name in fields if not re.search(rf"^    {name}: ", known, re.MULTILINE)] == []
