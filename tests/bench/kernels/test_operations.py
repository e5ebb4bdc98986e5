"""The operations of the sweep: what each launches for a candidate, without a GPU."""

from __future__ import annotations

import pytest
import torch

from ada_dsa import configs
from bench.kernels import operations
from bench.kernels.candidates import BOTH, GROUPS, NATIVE
from bench.kernels.operations import OPS, recording
from bench.kernels.sweep import Trial


@pytest.mark.parametrize("arch", BOTH)
@pytest.mark.parametrize("number", range(len(GROUPS)))
def test_every_candidate_launches_on_every_shape(number: int, arch: int) -> None:
    """On meta tensors, where launches are recorded: what is compiled is what would be launched."""
    group = GROUPS[number]
    op = OPS[group.op]
    for candidate in group.tried(arch):
        if "backend" in candidate.knobs:
            continue
        for shape in group.shapes:
            with recording() as launches:
                op.call(op.meta(shape), candidate, arch, 132)()
            main = launches[-1] if group.op == "topk" else launches[0]
            assert main.options["num_warps"] == candidate.warps
            taken = {name.lower(): value for name, value in main.args.items()} | main.options
            for name, value in candidate.params.items():
                if value and name not in ("MAXNREG", "SWAP"):
                    assert taken[name.lower()] == value, f"{candidate.name}: {name} was not used"


def test_the_table_takes_part_as_it_is() -> None:
    op = OPS["mla"]
    with recording() as launches:
        op.call(op.meta("B=64 H=8"), None, 89, 132)()
    row = configs.pick("sparse_mla", 89, heads=8, layout=0)
    assert launches[0].args["BLOCK_N"] == row.params["BLOCK_N"]
    assert launches[0].options["num_warps"] == row.num_warps


def test_results_that_differ_from_the_oracle_are_wrong() -> None:
    nan = float(operations._relative(torch.tensor([float("nan")]), torch.ones(1)))
    assert operations.wrong("mla", nan) and operations.wrong("topk", 1.0)
    assert not operations.wrong("mla", 3e-3) and not operations.wrong("topk", 0.0)


def test_topk_launches_the_configurations_it_is_given() -> None:
    shape = "32x32768"
    op = OPS["topk"]
    trial = Trial(next(n for n, g in enumerate(GROUPS) if shape in g.shapes), shape, "thin 255")
    with recording() as launches:
        op.call(op.meta(shape), trial.candidate(), NATIVE, 132)()
    thin = next(one for one in launches if one.kernel.__name__ == "prefilter_rows_kernel")
    assert thin.options["maxnreg"] == 255
    with recording() as launches:
        op.call(op.meta(shape), None, NATIVE, 132)()
    thin = next(one for one in launches if one.kernel.__name__ == "prefilter_rows_kernel")
    assert thin.options["maxnreg"] == 168
