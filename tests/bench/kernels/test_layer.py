"""The chain of a layer step, on the CPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ada_dsa.indexer import reference
from bench.kernels import layer, topk


def test_the_layer_step_attends_to_the_slots_its_indexer_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On the CPU: slots are page times 64 plus the place in the page, of the same rotation's pages."""
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(L2_cache_size=1 << 16)
    )
    step = layer.make_step(2, 4096, torch.device("cpu"))
    assert len(step.tables) == len(step.paged.tables) >= 2
    work = step.paged
    for turn in (0, 1):
        logits = reference.fp8_paged_mqa_logits(
            work.q, work.pool, work.weights, work.lens, work.tables[turn], work.width
        )
        chosen = logits.topk(topk.TOPK, dim=1).indices
        pages = work.tables[turn].gather(1, (chosen // 64)).long()
        index = layer._select_ours(step, turn)
        assert torch.equal(
            index.sort(dim=1).values.long(), (pages * 64 + chosen % 64).sort(dim=1).values
        )
        assert int(index.max()) < step.rows.shape[0]
    out = layer._attend_ours(step, index)
    assert out.shape == (2, layer.HEADS, 512) and torch.isfinite(out.float()).all()

    def attend(chosen: torch.Tensor) -> torch.Tensor:
        return layer._attend_ours(step, chosen)

    layer._check_agreement(step, lambda turn: layer._select_ours(step, turn), attend)
    with pytest.raises(RuntimeError, match="share only"):
        layer._check_agreement(step, lambda _: layer._select_ours(step, 1), attend)
