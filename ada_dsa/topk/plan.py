"""Launch plan of top-k: the path of a call and the number of splits, from shape and device alone."""

from __future__ import annotations

from dataclasses import dataclass

from .. import configs
from .._launch import next_power_of_2

MAX_SPLITS = 64


@dataclass(frozen=True)
class LaunchPlan:
    """How the rows of one call are processed.

    Attributes:
        splits: programs that prefilter one row; 0 if rows are short enough to need no prefilter.
        samples: scores of a row that its pivot is taken from.
        compact: whether the selection for few candidates, which uses fewer warps, is launched.
    """

    splits: int
    samples: int
    compact: bool = False


def plan_launch(
    *, arch: int, num_sms: int, num_rows: int, width: int, topk: int, padded: bool
) -> LaunchPlan:
    """Choose the path for ``num_rows`` rows of at most ``width`` scores.

    The sample is large enough that at least 64 of its scores are among the ``topk`` highest, up to a
    sample of 8,192. The pivot then keeps about 1.6 times ``topk`` scores. With a sample twice as large
    it keeps 1.5 times ``topk`` and at most twice ``topk`` (4.5 sigma), which is what the compact
    selection can hold. The number of splits gives about two programs per multiprocessor, with at
    least 2,048 scores each.

    Args:
        arch: from :func:`.arch.target_arch`.
        num_sms: multiprocessors of the device.
        num_rows: rows of the call, at least 1.
        width: columns of the score tensor.
        topk: indices selected per row.
        padded: whether every row can be read in whole vectors, see :func:`.api.has_padded_rows`.
    """
    compact = padded and 1024 < topk <= 2048 and width <= 64 * topk
    sampled_hits = 128 if compact else 64
    samples = min(8192, max(512, next_power_of_2(sampled_hits * width // topk)))
    select = configs.pick("topk_select", arch, topk=topk, aligned=int(padded), compact=int(compact))
    if width <= select.params["LARGE"]:
        return LaunchPlan(splits=0, samples=samples, compact=compact)
    splits = min(MAX_SPLITS, -(-2 * num_sms // num_rows), -(-width // 2048))
    return LaunchPlan(splits=max(1, splits), samples=samples, compact=compact)
