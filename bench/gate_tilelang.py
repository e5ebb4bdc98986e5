"""The compile gate of the TileLang kernel: every configuration and architecture, as a table.

    python bench/gate_tilelang.py >> docs/compile-gate.md

Needs tilelang and nvcc, no GPU. Exits with 1 if a configuration exceeds a block's shared memory or
registers, spills, or asks for another tensor-core instruction than mma.sync.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from ada_dsa import configs  # noqa: E402
from tests.support.aot import SHARED_LIMIT  # noqa: E402
from tests.support.aot_tilelang import lower  # noqa: E402

ARCHS = (80, 86, 89, 90, 120)
HEADS = (8, 32, 64)  # one for each row of the table


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    import tilelang

    print(f"\n## sparse MLA in TileLang {tilelang.__version__}\n")
    print(
        "Lowered by TileLang, compiled by nvcc; `bench/gate_tilelang.py`. Not executed on a GPU.\n"
    )
    print("| heads | arch | splits | registers x threads | shared, B | spills, B | |")
    print("|---:|---|---|---|---:|---:|---|")
    failed = False
    for heads in HEADS:
        for arch in ARCHS:
            for split in (True, False):
                config = configs.pick("sparse_mla_tilelang", arch, heads=heads)
                got = lower(arch, heads, split=split)
                threads = config.num_warps * 32
                if got.registers is None:
                    print("gate_tilelang: nvcc is not on the path", file=sys.stderr)
                    return 2
                ok = got.shared <= min(SHARED_LIMIT[arch], SHARED_LIMIT[89]) and not got.spills
                ok &= -(-got.registers // 8) * 8 * threads <= 65_536
                ok &= "mma_sync" in got.source and "wgmma" not in got.source
                failed |= not ok
                cells = [str(heads), f"sm_{arch}", "yes" if split else "no"]
                cells += [f"{got.registers} x {threads}", f"{got.shared:,}", str(got.spills)]
                print(f"| {' | '.join(cells)} | {'ok' if ok else '**FAILED**'} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
