"""The self-test of the kernels themselves, in Triton's interpreter: what it does on a GPU, made small."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ada_dsa import configs, selftest
from ada_dsa.indexer import api as indexer
from ada_dsa.indexer import quantize
from ada_dsa.kv_cache import api as kv_cache
from ada_dsa.kv_cache.layout import PACKED_BYTES, detect_layout
from ada_dsa.sparse_mla import api as sparse_mla
from ada_dsa.sparse_mla.plan import plan_launch
from ada_dsa.topk import api as topk
from ada_dsa.topk.plan import LaunchPlan

# numpy reports the infinities that the kernels make on purpose and then select away.
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")

SIZES = selftest.Sizes(context=150, topk=48, short=90, long=301, prefill=6)


class Launched:
    """The public functions' kernels on CPU tensors: what each does after its checks, for ``arch``."""

    def __init__(self, arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.arch, self.bytes_only = arch, arch < 89
        tiles = {
            "topk_prefilter": {"TILE": 64, "maxnreg": 128},
            "topk_select": {"SMALL": 64, "LARGE": 128, "maxnreg": 128},
        }

        def pick(op: str, arch: int, **shape: int) -> configs.Config:
            return configs.Config(op, arch, "test", 4, 1, 1, "interpreter", tiles[op])

        monkeypatch.setattr(topk, "configs", SimpleNamespace(pick=pick, Config=configs.Config))

    def get_paged_mqa_logits_metadata(
        self, lens: torch.Tensor, page: int, shares: int
    ) -> torch.Tensor:
        from ada_dsa.indexer.kernel import paged_schedule_kernel

        out = torch.empty((shares + 1, 2), dtype=torch.int32)
        paged_schedule_kernel[(shares + 1,)](
            lens, out, lens.shape[0], *lens.stride(), NEXT_N=lens.shape[1], PAGE=page, BLOCK=16
        )
        return out

    def fp8_paged_mqa_logits(
        self,
        q: torch.Tensor,
        pool: torch.Tensor,
        weights: torch.Tensor,
        lens: torch.Tensor,
        table: torch.Tensor,
        schedule: torch.Tensor,
        width: int,
    ) -> torch.Tensor:
        out = torch.empty((q.shape[0] * q.shape[1], width))
        config = configs.pick("paged_logits", self.arch, heads=q.shape[2], next_n=q.shape[1])
        indexer.launch_paged(
            q, pool, weights, lens, table, out, width, target=self.arch, config=config, programs=3
        )
        return out

    def fp8_mqa_logits(
        self,
        q: torch.Tensor,
        kv: tuple[torch.Tensor, torch.Tensor],
        weights: torch.Tensor,
        ks: torch.Tensor,
        ke: torch.Tensor,
    ) -> torch.Tensor:
        out = torch.empty((q.shape[0], kv[0].shape[0]))
        config = configs.pick("ragged_logits", self.arch, heads=q.shape[1])
        indexer.launch_ragged(
            q, *kv, weights, ks, ke, out, 0, target=self.arch, config=config, chunk=32
        )
        return out

    def _topk(
        self, score: torch.Tensor, lengths: torch.Tensor, count: int, transform: topk.Transform
    ) -> torch.Tensor:
        plan = LaunchPlan(splits=2 if score.shape[1] > 128 else 0, samples=64)
        return topk.launch(score, lengths, None, transform, count, target=self.arch, plan=plan)

    def fast_topk_v2(self, score: torch.Tensor, lengths: torch.Tensor, count: int) -> torch.Tensor:
        return self._topk(score, lengths, count, topk.Transform())

    def fast_topk_transform_fused(
        self,
        score: torch.Tensor,
        lengths: torch.Tensor,
        table: torch.Tensor,
        sums: torch.Tensor,
        count: int,
    ) -> torch.Tensor:
        return self._topk(score, lengths, count, topk.Transform(topk.PAGED, table, sums))

    def fast_topk_transform_ragged_fused(
        self, score: torch.Tensor, lengths: torch.Tensor, offset: torch.Tensor, count: int
    ) -> torch.Tensor:
        return self._topk(score, lengths, count, topk.Transform(topk.RAGGED, offset=offset))

    def sparse_mla_fwd(
        self,
        q: torch.Tensor,
        kv: torch.Tensor,
        indices: torch.Tensor,
        scale: float,
        q_rope: torch.Tensor,
        return_lse: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        layout, _ = detect_layout(kv)
        plan = plan_launch(
            arch=self.arch,
            num_sms=4,
            layout=layout,
            num_tokens=q.shape[0],
            num_heads=q.shape[1],
            topk=indices.shape[1],
        )
        return sparse_mla.launch(q, q_rope, kv[:, 0], layout, indices, scale, plan, return_lse)

    def act_quant(
        self, x: torch.Tensor, block_size: int, scale_fmt: str | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        blocks = x.view(-1, block_size)
        codes = torch.empty(blocks.shape, dtype=torch.float8_e4m3fn)
        scales = torch.empty(len(blocks))
        quantize.launch(blocks, codes, scales, scale_fmt is not None, self.bytes_only)
        return codes.view(x.shape), scales.view(*x.shape[:-1], -1)

    def quantize_k_cache(self, rows: torch.Tensor) -> torch.Tensor:
        out = torch.empty(rows.shape[0], PACKED_BYTES, dtype=torch.uint8)
        self.quantize_and_scatter(
            rows[:, 0, :512], rows[:, 0, 512:], out, torch.arange(rows.shape[0])
        )
        return out

    def quantize_k_cache_separate(
        self, nope: torch.Tensor, rope: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        out = torch.empty(nope.shape[0], PACKED_BYTES, dtype=torch.uint8)
        targets = kv_cache._split_views(out, self.bytes_only)
        kv_cache._pack(nope, rope, targets, None, self.bytes_only)
        return out[:, None, :528], out[:, None, 528:]

    def quantize_and_scatter(
        self, nope: torch.Tensor, rope: torch.Tensor, pool: torch.Tensor, loc: torch.Tensor
    ) -> None:
        targets = kv_cache._split_views(pool.view(-1, PACKED_BYTES), self.bytes_only)
        kv_cache._pack(nope, rope, targets, loc, self.bytes_only)

    def dequantize_k_cache(self, packed: torch.Tensor) -> torch.Tensor:
        return kv_cache._unpack(packed[:, 0], None, self.bytes_only)[:, None]

    def dequantize_k_cache_paged(self, packed: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        return kv_cache._unpack(packed[:, 0], slots, self.bytes_only)[:, None]


@pytest.mark.parametrize("arch", [86, 89])
def test_every_kernel_passes(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(arch, monkeypatch)
    outcomes = list(
        selftest.run_checks(launched, torch.device("cpu"), SIZES, selftest.LOGITS_BOUND)
    )
    assert len(outcomes) == len(selftest.CHECKS)
    assert not [str(one) for one in outcomes if not one.ok]


def test_what_a_kernel_raises_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = Launched(80, monkeypatch)
    monkeypatch.setattr(configs, "ROWS", ())
    outcomes = selftest.run_checks(launched, torch.device("cpu"), SIZES, selftest.LOGITS_BOUND)
    wrong = {one.name: one.problem for one in outcomes if not one.ok}
    assert "ValueError: paged_logits: no configuration for sm_80" in wrong["indexer logits, paged"]
    assert "KV pack" not in wrong
