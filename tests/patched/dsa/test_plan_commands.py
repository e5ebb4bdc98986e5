"""What ``tool plan`` prints starts: its command parses, resolves, and leads to the rows it counted."""

from __future__ import annotations

import argparse
import shlex

import fake_cuda
import pytest
import releases
import tree
from boundaries import HEADS
from packaging.version import Version

from tool.plan import find_model, make_plan, parse_gpus


@pytest.mark.parametrize(
    ("name", "folder", "weights", "gpus"),
    [
        ("GLM-5.2", "glm", "fp8", "8x RTX 4090 400GB"),
        ("GLM-5.2", "glm", "int4", "8x RTX 3090 400GB"),
        ("GLM-5.2", "glm", "int4", "8x A100"),
        ("GLM-5.2", "glm", "fp8", "8x RTX PRO 6000 400GB"),
        ("GLM-5.2", "glm", "fp8", "8x H200"),
        ("GLM-5.2", "glm", "fp8", "8x B200"),
        ("DeepSeek-V3.2", "deepseek_v32", "fp8", "8x RTX 4090 400GB"),
        ("DeepSeek-V3.2", "deepseek_v32", "fp8", "8x RTX 5090 400GB"),
        *(
            pytest.param(
                "GLM-5.3-Flash", "glm5_next", weights, gpus, marks=releases.only(">=0.5.21")
            )
            for weights, gpus in (
                ("fp8", "8x RTX 4090 48GB"),
                ("nvfp4", "8x RTX 4090 48GB"),
                ("int4", "4x RTX PRO 6000"),
                ("fp8", "8x H200"),
                ("fp8", "8x B200"),
            )
        ),
    ],
)
def test_a_planned_command_starts(
    configs: dict[str, str], name: str, folder: str, weights: str, gpus: str
) -> None:
    from sglang.srt.configs.model_config import ModelConfig
    from sglang.srt.server_args import ServerArgs

    cards = parse_gpus(gpus)
    plan = make_plan(find_model(name, weights), cards, Version(str(releases.RELEASE)))
    (command,) = plan.commands
    words = shlex.split(command.split("launch_server ")[1])
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    parsed = vars(parser.parse_args(words))
    # Some releases keep --tp-size under the name of its longer form.
    stored = {word: parser._option_string_actions[word].dest for word in words if word[:2] == "--"}
    given = {word[2:].replace("-", "_"): parsed[name] for word, name in stored.items()}
    for name in ("model_path", "host", "port"):
        del given[name]
    # The tiny models have fewer heads, and a rank shall have as many as the model's would.
    given["tp_size"] = max(1, given["tp_size"] * HEADS // plan.model.heads)
    with fake_cuda.capability(*divmod(cards.sm, 10)):
        args = tree.server_args(configs[folder], **given)
        args.check_server_args()
        chosen = tree.resolved(args)
        one = tree.server_args(
            configs[folder], **{**given, "tp_size": 1}
        )  # this process is one rank
        tree.publish(one)
        model = ModelConfig.from_server_args(one)
        width = tree._kv_cache_dim(one, model) * tree.kv_dtype(one).itemsize
    assert width == plan.row
    ada = {chosen["dsa_prefill_backend"], chosen["dsa_decode_backend"]} == {"ada_dsa"}
    assert ada == plan.kernels.startswith("ada_dsa")
