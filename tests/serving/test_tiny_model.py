"""The tiny model and its witness, on the CPU: format, repeatability, transformers, sensitivity."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from packaging.version import Version
from safetensors.torch import load_file

from tests.serving.support import tiny_model, witness
from tests.serving.support.tiny_model import BLOCK, Spec

SMALL = Spec(
    layers=8,
    heads=4,
    hidden=256,
    q_lora=128,
    dense=256,
    expert=128,
    vocab=512,
    topk=24,
    positions=4096,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model.write(tmp_path_factory.mktemp("small"), SMALL)


def prompt(length: int, vocab: int) -> torch.Tensor:
    return torch.randint(0, vocab - 3, (length,), generator=torch.Generator().manual_seed(7))


# -- weights and format ---------------------------------------------------------------------------


def test_values_are_the_same_bits_everywhere() -> None:
    values = tiny_model.normal(0, "any name", 1000).numpy()
    digest = hashlib.sha256(values.astype("<f4").tobytes()).hexdigest()
    assert digest.startswith("cd0d0e6bf0c6f521")
    assert not np.array_equal(values, tiny_model.normal(0, "another name", 1000).numpy())


def test_values_are_nearly_normal() -> None:
    values = tiny_model.normal(3, "many", 200_001)
    assert values.mean().abs() < 0.01
    assert values.std() == pytest.approx(1, abs=0.01)
    assert values.abs().max() < 3.5
    assert values.pow(4).mean() == pytest.approx(3 - 6 / 5 / 4, abs=0.05)  # of four uniforms


def test_a_model_is_the_same_bytes_for_a_seed(folder: Path, tmp_path: Path) -> None:
    def hashes(where: Path) -> list[str]:
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(where.iterdir())]

    assert hashes(tiny_model.write(tmp_path / "again", SMALL)) == hashes(folder)
    other = hashes(tiny_model.write(tmp_path / "other", replace(SMALL, seed=1)))
    assert [one == two for one, two in zip(other, hashes(folder), strict=True)] == [True, False]


@pytest.mark.parametrize("shape", [(256, 384), (576, 128), (1, 130)])
def test_block_quantisation(shape: tuple[int, int]) -> None:
    weight = tiny_model.normal(0, "w", *shape) * torch.logspace(-3, 1, shape[1])
    small, scale = tiny_model.quantise(weight)
    assert small.dtype == torch.float8_e4m3fn and small.shape == shape
    assert scale.dtype == torch.float32
    assert scale.shape == tuple(math.ceil(size / BLOCK) for size in shape)
    assert (torch.frexp(scale).mantissa == 0.5).all()  # powers of two
    back = tiny_model.dequantise(small, scale)
    assert torch.equal(back, back.to(torch.bfloat16).float())
    full = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)[: shape[0], : shape[1]]
    assert ((back - weight).abs() <= torch.maximum(weight.abs() / 16, full / 1024)).all()
    assert ((weight / full).abs() <= 448).all()
    for i, j in np.ndindex(*scale.shape):
        block = weight[i * BLOCK : (i + 1) * BLOCK, j * BLOCK : (j + 1) * BLOCK]
        assert block.abs().max() > 224 * scale[i, j]  # half the scale would not do


def test_a_block_that_fills_its_scale_keeps_it() -> None:
    small, scale = tiny_model.quantise(torch.full((BLOCK, BLOCK), 448.0))
    assert scale.item() == 1 and (small.float() == 448).all()


def test_names_and_dtypes_are_the_checkpoints(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    given = json.loads((folder / "config.json").read_text())
    indexed = {int(n.split(".")[2]) for n in tensors if ".indexer." in n}
    assert indexed == {0, 1, 2, 6, SMALL.layers}
    last = [name for name in tensors if name.startswith(f"model.layers.{SMALL.layers}.")]
    assert len(last) == 6 * SMALL.experts + 33  # 1569 with the 256 experts of GLM-5.2
    dense = [name for name in tensors if name.startswith("model.layers.2.")]
    assert len(dense) == 6 + 10 + 4 + 7  # feed-forward, attention, norms, indexer

    kept = {name.replace("indexers_proj", "indexer.weights_proj") for name in _kept(given)}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part == "weight_scale_inv":
            assert tensor.dtype == torch.float32
            assert tensors[f"{module}.weight"].dtype == torch.float8_e4m3fn
        elif tensor.dtype == torch.float8_e4m3fn:
            assert module not in kept and f"{name}_scale_inv" in tensors
        else:
            assert module in kept or f"{module}.{part}" in kept, name
    linears = (
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
        "self_attn.q_a_proj",
        "self_attn.q_b_proj",
    )
    linears += ("self_attn.kv_a_proj_with_mqa", "self_attn.kv_b_proj", "self_attn.o_proj")
    linears += ("self_attn.indexer.wq_b", "self_attn.indexer.wk")
    small = [name for name in dense if tensors[name].dtype == torch.float8_e4m3fn]
    assert sorted(small) == sorted(f"model.layers.2.{module}.weight" for module in linears)


def _kept(given: dict[str, object]) -> list[str]:
    return given["quantization_config"]["modules_to_not_convert"]  # type: ignore[index,no-any-return]


def test_the_bf16_twin_has_the_same_values(folder: Path, tmp_path: Path) -> None:
    twin = tiny_model.write(tmp_path, SMALL, bf16=True)
    assert "quantization_config" not in json.loads((twin / "config.json").read_text())
    ours, theirs = witness.load(folder).weights, witness.load(twin).weights
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_transformers_derives_the_same_layers(folder: Path) -> None:
    given = json.loads((folder / "config.json").read_text())
    derived = {key: value for key, value in given.items() if not key.endswith("er_types")}
    found = transformers.GlmMoeDsaConfig(**derived)
    assert found.indexer_types == given["indexer_types"]
    assert found.mlp_layer_types == given["mlp_layer_types"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hidden": 200}, "hidden is 200: not a multiple of 128"),
        ({"layers": 3}, "no expert and no shared indexer"),
        ({"experts_per_token": 9}, "no more experts per token than experts"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changed: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changed)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "made" / "here"
    given = ["--layers", "4", "--heads", "2", "--hidden", "128", "--seed", "5"]
    assert tiny_model.main([str(out), *given]) == 0
    assert "4 layers, 2 heads" in capsys.readouterr().out
    made = json.loads((out / "config.json").read_text())
    assert (made["num_attention_heads"], made["hidden_size"]) == (2, 128)
    with pytest.raises(SystemExit):
        tiny_model.main([str(out), "--layers", "2"])
    assert "Give 4 or more" in capsys.readouterr().err


# -- the witness ----------------------------------------------------------------------------------


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.17"),
    reason="transformers before 5.17 turns the indexer's rope the other way",
)
@pytest.mark.parametrize("length", [20, 80])  # fewer and more tokens than top-k
@pytest.mark.parametrize("architecture", [tiny_model.GLM, tiny_model.DEEPSEEK])
def test_the_witness_says_what_transformers_says(
    tmp_path: Path, length: int, architecture: tiny_model.Architecture
) -> None:
    spec = replace(SMALL, architecture=architecture)
    twin = tiny_model.write(tmp_path, spec, bf16=True)
    theirs = (
        getattr(transformers, architecture.name)
        .from_pretrained(twin, dtype=torch.float32, attn_implementation="eager")
        .eval()
    )
    for module in theirs.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.variance_epsilon = 1e-5  # theirs is 1e-6 within attention
    ids = prompt(length, SMALL.vocab)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0].log_softmax(-1)
    found = witness.forward(witness.load(twin), ids).logprobs
    assert (found - expected).abs().max() < 1e-4


def test_chunks_and_last_positions_change_nothing(folder: Path) -> None:
    model, ids = witness.load(folder), prompt(60, SMALL.vocab)
    whole = witness.forward(model, ids, with_keys=True)
    parts = witness.forward(model, ids, chunk=7, last=5, with_keys=True)
    assert torch.allclose(whole.logprobs[-5:], parts.logprobs, atol=1e-4)
    assert all(torch.equal(whole.keys[layer], parts.keys[layer]) for layer in (0, 1, 2, 6))


def test_keys_are_all_those_seen_up_to_topk(folder: Path) -> None:
    found = witness.forward(witness.load(folder), prompt(60, SMALL.vocab), with_keys=True).keys
    assert sorted(found) == [0, 1, 2, 6]
    for keys in found.values():
        assert keys.shape == (60, SMALL.topk)
        for row, chosen in enumerate(keys.tolist()):
            seen = min(row + 1, SMALL.topk)
            kept = chosen[:seen]
            assert chosen[seen:] == [-1] * (SMALL.topk - seen)
            assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] <= row
    assert not torch.equal(found[0], found[6])


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(folder: Path) -> None:
    ids = prompt(80, SMALL.vocab)
    one, other = (witness.forward(witness.load(folder, device=at), ids) for at in ("cpu", "cuda"))
    assert other.logprobs.device.type == "cuda"
    assert (one.logprobs - other.logprobs.cpu()).abs().max() < 1e-3


def test_the_command_line_writes_the_tokens_logprobs(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = prompt(30, SMALL.vocab).tolist()
    (tmp_path / "prompts.json").write_text(json.dumps({"one": ids}))
    given = [str(folder), str(tmp_path / "prompts.json"), str(tmp_path / "out.npz")]
    assert witness.main([*given, "--device", "cpu"]) == 0
    assert "one: 30 tokens, mean logprob -" in capsys.readouterr().out
    answer = witness.forward(witness.load(folder), ids)
    expected = [answer.logprobs[at, token].item() for at, token in enumerate(ids[1:])]
    assert np.load(tmp_path / "out.npz")["one"] == pytest.approx(expected, abs=1e-5)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 8}')
    with pytest.raises(FileNotFoundError, match="no \\*.safetensors. Make one: python -m tests"):
        witness.load(tmp_path)


# -- what the weights are for ---------------------------------------------------------------------


def most_recent(layer: int, scores: torch.Tensor, topk: int) -> torch.Tensor:
    """The keys that a sliding window selects."""
    positions = torch.arange(scores.shape[1]).expand_as(scores)
    return witness.top_keys(layer, torch.where(scores > -torch.inf, positions, -torch.inf), topk)


def one_in_twenty_missing(layer: int, scores: torch.Tensor, topk: int) -> torch.Tensor:
    chosen = witness.top_keys(layer, scores, topk)
    return chosen & (torch.arange(scores.shape[1]) % 20 != layer)


@pytest.mark.exhaustive  # minutes, in bfloat16 on a CPU; it changes with the model alone
def test_a_wrong_key_set_shows(tmp_path: Path) -> None:
    """Past 2048 tokens, against what rounding everything to bf16 does to the same weights."""
    spec = Spec(layers=5, heads=4, hidden=256, q_lora=256, dense=256, expert=128, vocab=1024)
    folder, ids = tiny_model.write(tmp_path, spec), prompt(2400, spec.vocab)
    last = len(ids) - spec.topk
    model = witness.load(folder)
    truth = witness.forward(model, ids, last=last).logprobs

    entropy = -(truth.exp() * truth).sum(-1).mean() / math.log(spec.vocab)
    assert 0.4 < entropy < 0.8
    best = truth.topk(2, dim=-1).values
    assert 0.1 < best[:, 0].exp().mean() < 0.5
    assert (best[:, 0] - best[:, 1]).mean() > 0.4

    def apart(logprobs: torch.Tensor) -> float:
        return (logprobs - truth).abs().mean().item()

    rounding = apart(
        witness.forward(witness.load(folder, dtype=torch.bfloat16), ids, last=last).logprobs
    )
    assert rounding < 0.025
    for choose, times in ((most_recent, 2.5), (one_in_twenty_missing, 1.6)):
        wrong = apart(witness.forward(model, ids, choose=choose, last=last).logprobs)
        assert wrong > times * rounding, choose.__name__
