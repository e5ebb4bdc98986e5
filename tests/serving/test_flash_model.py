"""The tiny GLM-5.3-Flash and its witness, on the CPU: format, repeatability, what the pooled index means."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

from tests.serving.support import flash_model
from tests.serving.support.flash_model import PREFIX, Spec
from tests.serving.support.tiny_model import dequantise

SMALL = Spec(
    layers=8, heads=2, linear_heads=1, hidden=128, q_lora=128, dense=128, vocab=512, topk=24
)
DSA = [3, 7]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flash_model.write(tmp_path_factory.mktemp("small"), SMALL)


# -- weights and format ---------------------------------------------------------------------------


def test_a_model_is_the_same_bytes_for_a_seed(folder: Path, tmp_path: Path) -> None:
    def hashes(where: Path) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(where.iterdir())]

    assert hashes(flash_model.write(tmp_path / "again", SMALL)) == hashes(folder)
    other = hashes(flash_model.write(tmp_path / "other", replace(SMALL, seed=1)))
    assert [one == two for one, two in zip(other, hashes(folder), strict=True)] == [True, False]


def test_names_and_dtypes_are_the_checkpoints(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    given = json.loads((folder / "config.json").read_text())["quantization_config"]

    def kept(module: str) -> bool:
        return any(f"{module}.".startswith(f"{one}.") for one in given["modules_to_not_convert"])

    quantised = {name for name, one in tensors.items() if one.dtype == torch.float8_e4m3fn}
    for name, tensor in tensors.items():
        module = name.rpartition(".")[0]
        if name in quantised:
            assert tensors[f"{name}_scale_inv"].dtype == torch.float32
            assert not kept(module), name
        elif name.endswith((*flash_model.FLOATS, "_scale_inv")):
            assert tensor.dtype == torch.float32, name
        else:
            assert tensor.dtype == torch.bfloat16, name
            if name.endswith(".weight"):
                assert kept(module), name
    for layer in range(SMALL.layers + 1):
        own = {name for name in quantised if name.startswith(f"{PREFIX}.layers.{layer}.self_attn.")}
        assert len(own) == (4 if layer in (*DSA, SMALL.layers) else 0)
    experts = 3 * (SMALL.experts + 1)
    assert sum(".layers.4.mlp." in name for name in quantised) == experts
    assert sum(".layers.0.mlp." in name for name in quantised) == 3


def test_the_bf16_twin_has_the_same_values(folder: Path, tmp_path: Path) -> None:
    twin = flash_model.write(tmp_path, SMALL, bf16=True)
    assert "quantization_config" not in json.loads((twin / "config.json").read_text())
    ours, theirs = (load_file(one / "model.safetensors") for one in (folder, twin))
    assert set(theirs) == {name for name in ours if not name.endswith("_scale_inv")}
    for name, tensor in theirs.items():
        scale = ours.get(f"{name}_scale_inv")
        own = ours[name] if scale is None else dequantise(ours[name], scale)
        assert torch.equal(own.float(), tensor.float()), name


def test_transformers_derives_the_same_layers(folder: Path) -> None:
    given = json.loads((folder / "config.json").read_text())
    found = transformers.Glm5NextConfig(**given).text_config
    kinds = [
        "linear_attention" if SMALL.is_linear(one) else "indexed_attention" for one in range(8)
    ]
    assert found.layer_types == kinds
    assert found.mlp_layer_types == ["dense"] * 3 + ["sparse"] * 5
    assert found.indexer_types == ["full"] * 8
    assert (found.index_kpool, found.index_topk, found.qk_rope_head_dim) == (4, 24, 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 200}, "hidden is 200: not a multiple of 128"),
        ({"layers": 3}, "no layer with DSA"),
        ({"kpool": 3}, "kpool must divide a page of 64 keys, and topk"),
        ({"topk": 30}, "kpool must divide a page of 64 keys, and topk"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changed)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "here"
    given = ["--layers", "4", "--heads", "2", "--linear-heads", "1", "--hidden", "128"]
    assert flash_model.main([str(out), *given, "--kpool", "16", "--topk", "512"]) == 0
    assert "4 layers, 2 heads, kpool 16" in capsys.readouterr().out
    made = json.loads((out / "config.json").read_text())["text_config"]
    assert (made["num_attention_heads"], made["hidden_size"]) == (2, 128)
    assert (made["index_kpool"], made["index_topk"]) == (16, 512)
    with pytest.raises(SystemExit):
        flash_model.main([str(out), "--layers", "2"])
    assert "Give 4 or more" in capsys.readouterr().err
