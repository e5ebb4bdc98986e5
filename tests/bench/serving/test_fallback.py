"""The functions of the released wheel, as the benchmark loads and calls them, on the CPU."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ada_dsa.indexer import reference
from bench.kernels import indexer
from bench.serving import fallback


def test_a_page_table_may_be_wider_than_what_it_holds() -> None:
    table = indexer.page_table([100, 1], torch.tensor([5, 4, 3], dtype=torch.int32), 4)
    assert table.dtype == torch.int32
    assert table.tolist() == [[5, 4, 0, 0], [3, 0, 0, 0]]


@pytest.mark.index
def test_the_released_logits_are_those_of_the_oracle(
    released_wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    """The function that the benchmark times is the release's, and computes what ours does."""
    small = tmp_path / "small.zip"
    wheel = released_wheel("0.5.23")
    fallback.cut(wheel, small)
    assert small.stat().st_size < 200_000
    assert fallback.origin(small) == fallback.origin(wheel) == wheel.name
    g = torch.Generator().manual_seed(0)
    keys = torch.randn((6, 64 * 128), generator=g).to(torch.float8_e4m3fn).view(torch.uint8)
    scales = (torch.rand((6, 64), generator=g) + 0.5).view(torch.uint8)
    pool = torch.cat([keys, scales], dim=1).view(6, 64, 1, 132)
    q = torch.randn((2, 1, 32, 128), generator=g).to(torch.float8_e4m3fn)
    weights = torch.randn((2, 32), generator=g)
    lens, table = torch.tensor([100, 190]), torch.tensor([[5, 2, 1], [3, 0, 4]], dtype=torch.int32)
    released = fallback.load_logits(small)
    theirs = released(q, pool, weights, lens, table, None, 192, clean_logits=False)
    ours = reference.fp8_paged_mqa_logits(q, pool, weights, lens[:, None], table, 192)
    assert float((theirs - ours).abs().mean() / ours.abs().mean()) < 0.02
    assert torch.equal(theirs == 0, ours == 0)


@pytest.mark.index
def test_the_released_attention_loads_without_its_server(
    released_wheel: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("tilelang")
    before = {name for name in sys.modules if name.startswith("sglang")}
    function = fallback.load_sparse(released_wheel("0.5.23"), tmp_path)
    assert function.__name__ == "tilelang_sparse_fwd"
    assert {name for name in sys.modules if name.startswith("sglang")} == before


def test_a_wheel_without_the_function_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "old.whl"
    with zipfile.ZipFile(wheel, "w") as out:
        out.writestr(fallback.LOGITS, "x = 1\n")
    with pytest.raises(LookupError, match="no fp8_paged_mqa_logits_torch.*0.5.22 or later"):
        fallback.load_logits(wheel)
