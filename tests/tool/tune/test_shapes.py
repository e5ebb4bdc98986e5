"""The shapes that follow from a model's config."""

from __future__ import annotations

import pytest

from tool.errors import UsageError
from tool.plan import find_model
from tool.tune.shapes import Shape, list_gemms, list_moes


def sizes(name: str, tp: int) -> list[tuple[int, ...]]:
    return [shape.sizes for shape in list_gemms(find_model(name, None), tp)]


def test_glm_5_2_has_the_nine_shapes_of_the_reference_port() -> None:
    """(N, K) that renning22/glm-5.2-4090 tuned for GLM-5.2-FP8 with TP8."""
    assert sizes("GLM-5.2-FP8", 8) == [
        (128, 6144),
        (512, 6144),
        (2048, 2048),
        (2624, 6144),
        (3072, 6144),
        (4096, 2048),
        (6144, 256),
        (6144, 1536),
        (6144, 2048),
    ]


def test_deepseek_v3_2_has_shapes_that_sglang_ships_files_for() -> None:
    """Of these sglang 0.5.23 has files for the H200 and others: (2112, 7168), (7168, 2048), …"""
    assert sizes("DeepSeek-V3.2", 8) == [
        (128, 7168),
        (512, 7168),
        (2112, 7168),
        (3072, 1536),
        (4608, 7168),
        (7168, 256),
        (7168, 2048),
        (7168, 2304),
        (8192, 1536),
    ]


def test_only_what_is_split_follows_the_ranks() -> None:
    four, eight = set(sizes("GLM-5.2-FP8", 4)), set(sizes("GLM-5.2-FP8", 8))
    assert {(128, 6144), (2624, 6144), (4096, 2048)} <= four & eight
    assert {(1024, 6144), (6144, 512), (6144, 3072), (6144, 4096)} <= four - eight


def test_the_moe_with_and_without_the_shared_expert() -> None:
    model = find_model("GLM-5.2-FP8", None)
    (apart,) = list_moes(model, 8, fused=False)
    (fused,) = list_moes(model, 8, fused=True)
    assert apart.sizes == (256, 256, 6144, 8, 0) and apart.title == "E=256,N=256"
    assert fused.sizes == (257, 256, 6144, 9, 1) and fused.title == "E=257,N=256"


def test_what_cannot_be_tuned_is_refused() -> None:
    with pytest.raises(UsageError, match="nvfp4: it has no block-fp8 GEMMs"):
        list_gemms(find_model("GLM-5.2-NVFP4", None), 8)
    with pytest.raises(UsageError, match="64 attention heads cannot be split over 6 ranks"):
        list_gemms(find_model("GLM-5.2-FP8", None), 6)
    with pytest.raises(UsageError, match="blocks of 128 over 32 ranks"):
        list_moes(find_model("GLM-5.2-FP8", None), 32, fused=False)


def test_a_title_is_the_part_of_sglangs_file_name() -> None:
    assert Shape("gemm", (128, 6144), "").title == "N=128,K=6144"
