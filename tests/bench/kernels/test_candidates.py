"""The candidates as data."""

from __future__ import annotations

from ada_dsa.topk.plan import plan_launch
from bench.kernels import candidates, topk
from bench.kernels.candidates import BOTH, GROUPS, NATIVE
from bench.kernels.operations import OPS, recording
from bench.kernels.sweep import PEERS, TABLE


def test_names_are_unique_and_predictions_are_made() -> None:
    for group in GROUPS:
        names = [candidate.name for candidate in group.candidates]
        assert len(set(names)) == len(names) and not {TABLE, PEERS} & set(names)
        assert all(candidate.predicted for candidate in group.candidates)
        for shape in group.shapes:
            assert all(group.bar(shape, arch) > 0 for arch in BOTH)
    bars = [group.bar(s, NATIVE) for group in GROUPS for s in group.shapes if s == "1x131072"]
    assert bars == [0.3]


def test_a_plan_without_splits_selects_directly() -> None:
    """What the direct candidates rely on: no split means that the row itself is selected from."""
    assert candidates._DIRECT[0].params["LARGE"] >= 8192
    with recording() as launches:
        op = OPS["topk"]
        op.call(op.meta("1x8192"), candidates._DIRECT[0], NATIVE, 132)()
    assert [one.kernel.__name__ for one in launches] == ["select_rows_kernel"]
    plan = plan_launch(
        arch=NATIVE, num_sms=132, num_rows=1, width=8192, topk=topk.TOPK, padded=True
    )
    assert plan.splits > 0
