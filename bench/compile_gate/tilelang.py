"""Compile the TileLang kernel in every configuration for every architecture and table what it uses.

    python -m bench.compile_gate.tilelang >> docs/compile-gate.md

This needs tilelang and nvcc, but no GPU. The exit code is 1 if a configuration takes more shared memory or
registers than a block has, spills registers, or uses another tensor-core instruction than mma.sync.
"""

from __future__ import annotations

import argparse
import sys

from ada_dsa import configs
from tests.support import aot
from tests.support.aot_tilelang import lower

HEADS = (8, 32, 64)  # one number of heads for each row of the table of configurations


def main() -> int:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    import tilelang

    print(f"\n## sparse MLA in TileLang {tilelang.__version__}\n")
    print(
        "Lowered by TileLang and compiled by nvcc (`bench/compile_gate/tilelang.py`), not run on a GPU.\n"
    )
    print("| heads | arch | splits | registers x threads | shared, B | spills, B | |")
    print("|---:|---|---|---|---:|---:|---|")
    failed = False
    for heads in HEADS:
        for arch in aot.ARCHS:
            for split in (True, False):
                config = configs.pick("sparse_mla_tilelang", arch, heads=heads)
                got = lower(arch, heads, split=split)
                threads = config.num_warps * 32
                if got.registers is None:
                    print("bench.compile_gate.tilelang: nvcc is not on PATH", file=sys.stderr)
                    return 2
                ok = got.shared <= min(aot.SHARED_LIMIT.values()) and not got.spills
                ok &= -(-got.registers // 8) * 8 * threads <= 65_536
                ok &= "mma_sync" in got.source and "wgmma" not in got.source
                failed |= not ok
                cells = [str(heads), f"sm_{arch}", "yes" if split else "no"]
                cells += [f"{got.registers} x {threads}", f"{got.shared:,}", str(got.spills)]
                print(f"| {' | '.join(cells)} | {'ok' if ok else '**FAILED**'} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    raise SystemExit(main())
