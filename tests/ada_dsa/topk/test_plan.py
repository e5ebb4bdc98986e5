"""The launch plan of top-k: what a shape and a device make of it."""

from __future__ import annotations

import pytest

from ada_dsa import configs
from ada_dsa.topk.plan import MAX_SPLITS, plan_launch


@pytest.mark.parametrize("topk", [1, 64, 2048, 4096])
@pytest.mark.parametrize("width", [100, 8192, 8193, 131_072, 1 << 20])
@pytest.mark.parametrize("rows", [1, 8, 64, 2048])
def test_plans_depend_on_shapes_and_fit(rows: int, width: int, topk: int) -> None:
    plan = plan_launch(arch=89, num_sms=128, num_rows=rows, width=width, topk=topk, padded=True)
    select = configs.pick("topk_select", 89, topk=topk, compact=int(plan.compact))
    direct = select.params["LARGE"]
    assert (plan.splits == 0) == (width <= direct)
    assert plan.splits <= MAX_SPLITS
    assert 512 <= plan.samples <= 8192
    assert plan.samples & (plan.samples - 1) == 0
    assert direct >= topk
