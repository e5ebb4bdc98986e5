"""What ``--model`` names, and what is read from a config."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ada_dsa import index_sharing
from tool.errors import EnvironmentFault, UsageError
from tool.plan import find_model
from tool.plan import model as models

TABLE: dict[str, Any] = json.loads(Path(models.__file__).with_name("models.json").read_text())
GLM: dict[str, Any] = TABLE["GLM-5.2"]["config"]


def write(folder: Path, **changed: Any) -> Path:
    (folder / "config.json").write_text(json.dumps({**GLM, **changed}))
    return folder


@pytest.mark.parametrize(
    ("given_name", "weights", "form", "path"),
    [
        ("GLM-5.2", None, "fp8", "zai-org/GLM-5.2-FP8"),
        ("glm-5.2", "nvfp4", "nvfp4", "nvidia/GLM-5.2-NVFP4"),
        ("GLM-5.2-FP8", None, "fp8", "zai-org/GLM-5.2-FP8"),
        ("GLM-5.2 4-bit", None, "nvfp4", "nvidia/GLM-5.2-NVFP4"),
        ("GLM-5.2 4-bit", "int4", "int4", "PATH-OF-GLM-5.2-IN-INT4"),
        ("someone/GLM-5.2-AWQ", None, "int4", "someone/GLM-5.2-AWQ"),
        ("deepseek-ai/DeepSeek-V3.2", None, "fp8", "deepseek-ai/DeepSeek-V3.2"),
        ("GLM-5.3-Flash", "nvfp4", "nvfp4", "nvidia/GLM-5.3-Flash-NVFP4"),
    ],
)
def test_names_of_the_table(given_name: str, weights: str | None, form: str, path: str) -> None:
    model = find_model(given_name, weights)
    assert (model.format, model.path) == (form, path)


def test_the_layers_of_the_table() -> None:
    glm, flash = find_model("GLM-5.2", None), find_model("GLM-5.3-Flash", None)
    assert sorted(glm.indexed) == [0, 1, 2, *range(6, 78, 4)] and glm.shares_indexers
    assert find_model("DeepSeek-V3.2", None).indexed == frozenset(range(61))
    assert sorted(flash.indexed) == list(flash.attention) == list(range(3, 45, 4))
    assert len(flash.linear) == 34 and not flash.shares_indexers


def test_a_folder_and_a_file(tmp_path: Path) -> None:
    folder = write(tmp_path)
    model = find_model(str(folder), None)
    assert model.format == "bf16" and model.folder == folder and model.path == str(folder)
    known = find_model("GLM-5.2", "bf16")
    same = replace(known, name=model.name, path=model.path)
    assert same == model == find_model(str(folder / "config.json"), "bf16")


@pytest.mark.parametrize(
    ("quantization", "form"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "nvfp4"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "int4"),
        ({"quant_method": "gptq", "bits": 4}, "int4"),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "int"}}},
            },
            "int4",
        ),
        (
            {
                "quant_method": "compressed-tensors",
                "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float"}}},
            },
            "nvfp4",
        ),
    ],
)
def test_formats(tmp_path: Path, quantization: dict[str, Any], form: str) -> None:
    folder = str(write(tmp_path, quantization_config=quantization))
    assert find_model(folder, None).format == form
    other = "bf16"
    with pytest.raises(UsageError, match=f"is in {form}, --weights says {other}"):
        find_model(folder, other)


def test_the_format_beside_the_config(tmp_path: Path) -> None:
    beside = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}
    (write(tmp_path) / "hf_quant_config.json").write_text(json.dumps(beside))
    assert find_model(str(tmp_path), None).format == "nvfp4"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"index_topk": None}, "no DSA model"),
        ({"hidden_size": 0}, "hidden_size of the model's config is 0"),
        ({"hidden_size": "6144"}, "hidden_size of the model's config is '6144'"),
        ({"num_hidden_layers": True}, "num_hidden_layers of the model's config is True"),
        ({"vocab_size": None}, "vocab_size of the model's config is None"),
        ({"index_topk_freq": 0}, "index_topk_freq of the model's config is 0"),
        ({"quantization_config": {"quant_method": "gguf"}}, "quantisation gguf"),
    ],
)
def test_a_config_that_cannot_be_planned(
    tmp_path: Path, changed: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        find_model(str(write(tmp_path, **changed)), None)


@pytest.mark.parametrize(
    ("given_name", "weights", "says"),
    [
        ("Llama-4", None, "neither a folder"),
        ("GLM-5.2-FP8", "int4", "in fp8, --weights says int4"),
        ("", None, "no config.json"),  # the current folder
    ],
)
def test_a_model_that_is_not_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    given_name: str,
    weights: str | None,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        find_model(given_name, weights)


@pytest.mark.parametrize("text", ["", "[]", "{", "\udcff"])
def test_a_damaged_config(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UsageError, match="JSON"):
        find_model(str(tmp_path), None)


WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=2),
)
FIELDS = [*GLM, "quantization_config", "indexer_types", "index_topk_pattern", "text_config"]
FIELDS += ["vision_config", "layer_types", "linear_attn_config", "n_shared_experts", "hc_mult"]


@settings(max_examples=300)
@given(st.sampled_from(["GlmMoeDsaForCausalLM", "Glm5Next"]), st.sampled_from(FIELDS), WRONG)
def test_a_wrong_field_is_a_usage_error_or_no_harm(kind: str, name: str, value: Any) -> None:
    try:
        model = models._read_config({**GLM, "architectures": [kind], name: value}, "x")
    except UsageError as error:
        assert name in str(error) or "no DSA model" in str(error) or "quantisation" in str(error)
    else:
        assert model.layers <= 500 and model.heads > 0


rules = st.one_of(
    st.fixed_dictionaries({"indexer_types": st.lists(st.sampled_from(["full", "shared"]))}),
    st.fixed_dictionaries({"index_topk_pattern": st.text("FS", max_size=20)}),
    st.fixed_dictionaries(
        {"index_topk_freq": st.integers(1, 6), "index_skip_topk_offset": st.integers(1, 6)}
    ),
    st.just({}),
)


@given(rules, st.integers(1, 20))
def test_indexers_are_those_of_ada_dsa(rule: dict[str, Any], layers: int) -> None:
    config = SimpleNamespace(num_hidden_layers=layers, **rule)
    plain = {k: v for k, v in GLM.items() if not k.startswith("index_topk_f")}
    plain.pop("index_skip_topk_offset")
    model = models._read_config({**plain, **rule, "num_hidden_layers": layers}, "x")
    assert sorted(model.indexed) == index_sharing.full_layers(config)


# -- --fetch-config -----------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """A hub on this machine: path → what it answers."""
    files: dict[str, bytes] = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = files.get(self.path)
            self.send_response(404 if found is None else 200)
            self.end_headers()
            self.wfile.write(found or b"")

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("no_proxy", "*")
    yield files
    server.shutdown()
    server.server_close()


def test_a_config_is_fetched_only_when_asked(hub: dict[str, bytes]) -> None:
    hub["/lab/New-DSA/resolve/main/config.json"] = json.dumps(GLM).encode()
    with pytest.raises(UsageError, match="--fetch-config") as error:
        find_model("lab/New-DSA", None)
    assert "--fetch-config" in str(error.value.next_step)
    model = find_model("lab/New-DSA", None, fetch=True)
    assert model.path == "lab/New-DSA" and model.layers == 78


@pytest.mark.parametrize("answer", [None, b"<html>", b"{"])
def test_a_hub_that_does_not_answer(hub: dict[str, bytes], answer: bytes | None) -> None:
    if answer is not None:
        hub["/lab/New-DSA/resolve/main/config.json"] = answer
    with pytest.raises(EnvironmentFault, match="config.json could not be fetched"):
        find_model("lab/New-DSA", None, fetch=True)


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(EnvironmentFault, match="could not be fetched"):
        find_model("lab/New-DSA", None, fetch=True)
    with pytest.raises(UsageError, match="needs an id"):
        find_model("not an id", None, fetch=True)
