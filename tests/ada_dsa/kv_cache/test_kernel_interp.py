"""KV cache kernels in Triton's interpreter: the bytes equal the torch oracle's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ada_dsa.kv_cache import reference
from ada_dsa.kv_cache.api import _pack, _split_views, _unpack

# numpy reports the infinities that the kernels make on purpose and then select away.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")


def make_rows(count: int) -> torch.Tensor:
    rng = np.random.default_rng(count)
    magnitude = 10.0 ** rng.uniform(-6, 4, (count, 4, 1))
    rows = rng.standard_normal((count, 576))
    rows[:, :512] = (rows[:, :512].reshape(count, 4, 128) * magnitude).reshape(count, 512)
    out = torch.from_numpy(rows).to(torch.bfloat16)
    out[::3, 128:256] = 0
    return out


@pytest.mark.parametrize("bytes_only", [False, True])
def test_pack_equals_the_oracle(bytes_only: bool) -> None:
    rows = make_rows(7)
    out = torch.full((7, 656), 0xEE, dtype=torch.uint8)
    _pack(rows[:, :512], rows[:, 512:], _split_views(out, bytes_only), None, bytes_only)
    assert torch.equal(out, reference.pack_rows(rows[:, :512], rows[:, 512:]))


@pytest.mark.parametrize("bytes_only", [False, True])
def test_scatter_equals_the_oracle(bytes_only: bool) -> None:
    rows = make_rows(6)
    slots = torch.tensor([11, -1, 0, 3, -5, 7], dtype=torch.int64)
    got, want = (torch.full((12, 656), 0xEE, dtype=torch.uint8) for _ in range(2))
    _pack(rows[:, :512], rows[:, 512:], _split_views(got, bytes_only), slots, bytes_only)
    reference.scatter_rows(rows[:, :512], rows[:, 512:], want, slots)
    assert torch.equal(got, want)


def assert_equal_with_nan(got: torch.Tensor, want: torch.Tensor) -> None:
    nan = want.isnan()
    assert torch.equal(got.isnan(), nan)
    assert torch.equal(got[~nan], want[~nan])


@pytest.mark.parametrize("bytes_only", [False, True])
def test_every_code_unpacks(bytes_only: bool) -> None:
    packed = torch.zeros(2, 656, dtype=torch.uint8)
    packed[0, :256] = torch.arange(256, dtype=torch.uint8)
    packed[1, 256:512] = torch.arange(256, dtype=torch.uint8)
    packed[:, 512:528] = torch.tensor([1.0, 0.37, 2.0**-100, 3e5]).view(torch.uint8)
    assert_equal_with_nan(_unpack(packed, None, bytes_only), reference.unpack_rows(packed))


@pytest.mark.parametrize("bytes_only", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_gather_reads_only_named_rows(bytes_only: bool, dtype: torch.dtype) -> None:
    rows = make_rows(10)
    packed = reference.pack_rows(rows[:, :512], rows[:, 512:])
    slots = torch.tensor([9, -1, 4, 4, 2], dtype=dtype)
    want = reference.unpack_rows_at(packed, slots)
    packed[[0, 1, 3, 5]] = 0xFF
    got = _unpack(packed, slots, bytes_only)
    assert torch.equal(got, want)
    assert not got[1].any()


def test_byte_encoder_rounds_like_torch() -> None:
    """Values around every rounding boundary: rows of one tile whose scale is exactly 1."""
    codes = torch.arange(127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    middle = (codes[1:] + codes[:-1]) / 2
    values = torch.cat([middle, codes, codes[:1]]).repeat(2)
    values[254:] *= -1
    tiles = torch.zeros(4, 128)
    tiles[:, 1:] = values.view(4, 127)
    tiles[:, 0] = 448.0
    nope = tiles.view(1, 512).to(torch.bfloat16)
    assert torch.equal(nope.float().view(4, 128), tiles), "the boundaries are bfloat16 numbers"
    rope = torch.zeros(1, 64, dtype=torch.bfloat16)
    out = torch.empty(1, 656, dtype=torch.uint8)
    _pack(nope, rope, _split_views(out, True), None, True)
    want = tiles.to(torch.float8_e4m3fn).view(torch.uint8).view(512)
    assert torch.equal(out[0, :512], want)
