"""The tiny GLM-5.3-Flash and its witness, on the CPU: format, repeatability, what the pooled index means."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file

from tests.serving.support import flash_model, flash_witness, prompts
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


# -- the witness ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(folder: Path) -> flash_witness.Model:
    return flash_witness.load(folder)


def prompt(length: int) -> list[int]:
    return prompts.ids(length, seed=7, vocab=SMALL.vocab)


def test_chunks_and_last_positions_change_nothing(model: flash_witness.Model) -> None:
    """Over the cache, chunks of several tokens and of one, pools cut by both; and at once without it."""
    ids = prompt(45)
    whole = flash_witness.forward(model, ids, chunk=None, with_keys=True)
    assert whole.logprobs.shape == (45, SMALL.vocab)
    for chunk in (30, 1):
        parts = flash_witness.forward(model, ids, chunk=chunk, last=40, with_keys=True)
        assert torch.allclose(whole.logprobs[-40:], parts.logprobs, atol=1e-4)
        assert sorted(parts.keys) == DSA
        for layer in DSA:
            assert torch.equal(*(one.keys[layer].sort(-1).values for one in (whole, parts)))


def test_keys_are_whole_pools_and_the_open_ones_tokens(model: flash_witness.Model) -> None:
    found = flash_witness.forward(model, prompt(60), with_keys=True).keys
    for keys in found.values():
        assert keys.shape == (60, SMALL.topk + SMALL.kpool - 1)
        for row, chosen in enumerate(keys.tolist()):
            live = [key for key in chosen if key >= 0]
            closed, tail = divmod(row + 1, SMALL.kpool)
            assert len(live) == len(set(live)) == min(4 * closed, SMALL.topk) + tail
            assert set(range(4 * closed, row + 1)) <= set(live)
            pools = {key // 4 for key in live if key < 4 * closed}
            assert len(pools) == min(closed, SMALL.topk // 4)
    assert not torch.equal(found[3], found[7])


@pytest.mark.parametrize(("kpool", "topk", "length"), [(4, 24, 90), (16, 64, 150), (4, 512, 1500)])
def test_the_witness_selects_as_the_pooled_index_is_defined(
    tmp_path: Path, kpool: int, topk: int, length: int
) -> None:
    """Of the first DSA layer, computed here from the checkpoint's tensors, in fp64 and a query at a time.

    A pool's key is the mean of its tokens' keys, channel by channel, with weights that are the softmax of the
    gate and the place in the pool. Only pools whose tokens are all seen have a score. The best
    ``topk / kpool`` of them are selected, and always the tokens after the last whole pool.
    """
    spec = replace(SMALL, layers=4, kpool=kpool, topk=topk)
    folder = flash_model.write(tmp_path, spec)
    model, ids = flash_witness.load(folder), prompt(length)
    seen: dict[str, Any] = {}
    indexer = model.module.model.language_model.layers[3].self_attn.indexer
    indexer.register_forward_pre_hook(lambda _, __, given: seen.update(given), with_kwargs=True)
    keys = flash_witness.forward(model, ids, chunk=None, with_keys=True).keys[3]

    tensors = load_file(folder / "model.safetensors")
    name = f"{PREFIX}.layers.3.self_attn.indexer."
    own = {one.removeprefix(name): t.double() for one, t in tensors.items() if name in one}
    x, latent = seen["hidden_states"][0].double(), seen["q_resid"][0].double()
    q = (latent @ own["wq_b.weight"].T).unflatten(-1, (flash_model.INDEX_HEADS, -1))
    k = F.layer_norm(
        x @ own["wk.weight"].T, (128,), own["k_norm.weight"], own["k_norm.bias"], eps=1e-6
    )
    weights = x @ own["weights_proj.weight"].T
    gates = x @ own["index_kpool_compress_gate"].T
    pooled = torch.stack(
        [
            (
                (gates[at : at + kpool] + own["index_kpool_compress_ape"]).softmax(0)
                * k[at : at + kpool]
            ).sum(0)
            for at in range(0, length - kpool + 1, kpool)
        ]
    )
    selective = 0
    for row in range(length):
        closed = (row + 1) // kpool
        live = {key for key in keys[row].tolist() if key >= 0}
        assert live >= set(range(closed * kpool, row + 1))
        chosen = {key // kpool for key in live if key < closed * kpool}
        assert len(live) == kpool * len(chosen) + row + 1 - closed * kpool
        assert len(chosen) == min(closed, topk // kpool)
        if len(chosen) < closed:
            scores = weights[row] @ (q[row] @ pooled[:closed].T).relu()
            left = set(range(closed)) - chosen
            least, most = (scores[list(one)] for one in (chosen, left))
            assert least.min() >= most.max() - 1e-4 * scores.std()
            selective += 1
    assert selective == length - topk - kpool + 1


@pytest.mark.gpu
def test_a_gpu_says_what_the_cpu_says(folder: Path) -> None:
    one, other = (
        flash_witness.forward(flash_witness.load(folder, device=at), prompt(80))
        for at in ("cpu", "cuda")
    )
    assert other.logprobs.device.type == "cuda"
    assert (one.logprobs - other.logprobs.cpu()).abs().max() < 1e-3


def test_a_folder_without_a_model_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="no \\*.safetensors. Make one: python -m tests"):
        flash_witness.load(tmp_path)


# -- what the weights are for ---------------------------------------------------------------------


def most_recent(layer: int, start: int, keys: torch.Tensor) -> torch.Tensor:
    """The whole pools that a sliding window selects, and the open one's tokens."""
    found = torch.full_like(keys, -1)
    width = keys.shape[1] - SMALL.kpool + 1
    for row, chosen in enumerate(found):
        seen = start + row + 1
        window = torch.arange(max(seen // SMALL.kpool * SMALL.kpool - width, 0), seen)
        chosen[: len(window)] = window
    return found


def one_pool_in_twenty_missing(layer: int, start: int, keys: torch.Tensor) -> torch.Tensor:
    return torch.where((keys // SMALL.kpool) % 20 == layer, -1, keys)


def without_the_open_pool(layer: int, start: int, keys: torch.Tensor) -> torch.Tensor:
    found = keys.clone()
    found[:, -(SMALL.kpool - 1) :] = -1
    return found


@pytest.mark.exhaustive  # minutes on a CPU; it changes with the model alone
def test_a_wrong_key_set_shows(tmp_path: Path) -> None:
    """Past top-k, against what rounding everything to bf16 does to the same weights."""
    spec = Spec(hidden=256, heads=4, linear_heads=2, topk=512)
    folder, ids = flash_model.write(tmp_path, spec), prompts.ids(1500, seed=7)
    last = len(ids) - spec.topk
    model = flash_witness.load(folder)
    truth = flash_witness.forward(model, ids, last=last).logprobs

    entropy = -(truth.exp() * truth).sum(-1).mean() / math.log(spec.vocab)
    assert 0.4 < entropy < 0.8
    best = truth.topk(2, dim=-1).values
    assert 0.1 < best[:, 0].exp().mean() < 0.5
    assert (best[:, 0] - best[:, 1]).mean() > 0.4

    def apart(logprobs: torch.Tensor) -> float:
        return (logprobs - truth).abs().mean().item()

    rounded = flash_witness.load(folder, dtype=torch.bfloat16)
    rounding = apart(flash_witness.forward(rounded, ids, last=last).logprobs)
    assert rounding < 0.03
    cases = ((most_recent, 6), (one_pool_in_twenty_missing, 2), (without_the_open_pool, 3))
    for choose, times in cases:
        wrong = apart(flash_witness.forward(model, ids, choose=choose, last=last).logprobs)
        assert wrong > times * rounding, choose.__name__
