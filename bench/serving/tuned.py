"""Time whole steps of a rank of GLM-5.2 with sglang's default configurations and with tuned ones.

    python -m bench.serving.tuned FOLDER [--json FILE]

FOLDER is what ``tool tune --model GLM-5.2-FP8 --tp 8 --out FOLDER`` wrote. The model has the shapes of one of
eight ranks and fifteen of the 78 layers. sglang fills its weights with random numbers, so tokens go to
different experts. Both runs are the fork under the sm_89 lowering, and both name the device as the files do:
the default run then takes no file that sglang ships for the GPU at hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from bench.serving import steps
from tests.serving.support import engines, metrics, tiny_model
from tests.serving.support.flavours import FLAVOURS, HOME
from tool.tune import worker

RANK: Final = tiny_model.Spec(
    layers=15,
    heads=64 // 8,
    hidden=6144,
    q_lora=2048,
    dense=12_288 // 8,
    expert=2048 // 8,
    experts=256,
    experts_per_token=8,
    vocab=154_880 // 8,
)
"""What one of eight tensor-parallel ranks holds of a layer of GLM-5.2."""
CONTEXTS: Final = (2048, 32_768)
PACKAGE: Final = "sglang"


def find_device(folder: Path) -> str:
    """The device in the names of the files below ``folder``.

    Raises:
        LookupError: there are no files, or they are for several devices.
    """
    names = [re.search(r"device_name=([^,]+)", file.name) for file in folder.rglob("*.json")]
    found = {match[1] for match in names if match}
    if len(found) != 1:
        raise LookupError(f"files for {len(found)} devices in {folder}, not for one")
    return found.pop()


def write_config(folder: Path) -> Path:
    """``config.json`` of RANK; there are no weights."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(tiny_model.config(RANK)))
    return folder


def copy_site(tuned: Path, site: Path) -> Path:
    """The fork with the files of ``tuned``; all other files are hard links."""
    shutil.copytree(HOME / "fork", site, copy_function=os.link)
    for file in (tuned / PACKAGE).rglob("*.json"):
        to = site / file.relative_to(tuned)
        to.parent.mkdir(parents=True, exist_ok=True)
        to.unlink(missing_ok=True)  # a link to the fork's own file
        shutil.copy(file, to)
    return site


def measure(device: str, model: Path, out: Path) -> None:
    """In the child process: time the fork that is first on the path."""
    package = worker.find_module(worker.MOE_MODULES, "override_config")
    configs = (f"{package.__name__}.fused_moe_triton_config",)
    worker.name_device(worker.find_module(configs, "get_moe_configs"), device)
    gemm = worker.find_module(worker.GEMM_MODULES, "get_w8a8_block_fp8_configs")
    worker.name_device(gemm, device)
    given = engines.arguments(
        FLAVOURS["fork-sm89"], model, **steps.changes(CONTEXTS), load_format="dummy"
    )
    steps.measure("fork-sm89", given, out, CONTEXTS)


def compare(default: dict[str, Any], tuned: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each point that both runs timed: milliseconds, and default over tuned."""
    rows = []
    points = {(r["kind"], r["streams"], r["context"]): r for r in tuned["rows"] if "ms" in r}
    for one in default["rows"]:
        point = one["kind"], one["streams"], one["context"]
        if "ms" in one and (other := points.get(point)):
            times = {"default ms": one["ms"], "tuned ms": other["ms"]}
            rows.append(
                {
                    **dict(zip(("kind", "streams", "tokens"), point, strict=True)),
                    **times,
                    "ratio": one["ms"] / other["ms"],
                }
            )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tuned", type=Path, metavar="FOLDER", help="of tool tune --out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("out", nargs="?", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        measure(options.child[0], Path(options.child[1]), options.out)
        return 0
    if missing := engines.missing_sites():
        parser.error(missing)
    try:
        device = find_device(options.tuned / PACKAGE)
    except LookupError as err:
        parser.error(f"{err}; run tool tune first")
    with tempfile.TemporaryDirectory(dir=HOME) as temp:  # hard links need one file system
        folder = Path(temp)
        model = write_config(folder / "model")
        child = [sys.executable, "-m", "bench.serving.tuned", "--child", device, str(model)]
        child += [str(options.tuned)]
        runs = []
        for name, site in (
            ("default", HOME / "fork"),
            ("tuned", copy_site(options.tuned, folder / "tuned")),
        ):
            flavour = dataclasses.replace(FLAVOURS["fork-sm89"], site=str(site))
            runs.append(steps.run(name, child, engines.environ(flavour), folder))
    rows = compare(*runs)
    if options.json:
        options.json.write_text(json.dumps({"runs": runs, "rows": rows}, indent=1) + "\n")
    if rows:
        print(metrics.table(list(rows[0]), [list(row.values()) for row in rows]))
    return 1 if any("error" in one for one in runs) or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
