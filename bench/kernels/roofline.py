"""The least time that bytes and arithmetic allow each kernel, on an RTX 4090, an RTX 5090 and an H200.

    python -m bench.kernels.roofline > docs/roofline.md

Nothing is timed here. The measured times in the tables are those of ``docs/performance.md``, which is made
first; its "share" columns come from :func:`share`.
"""

from __future__ import annotations

import argparse
import datetime
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

INDEX_DIM = 128  # values of an index key, 1 byte each, with one float32 scale
INDEX_ROW = INDEX_DIM + 4
PAGE = 64
TOPK = 2048
KEY_DIM, VALUE_DIM = 576, 512  # values of a latent row as key (512 + 64 rotary) and as value
LATENT_ROW = {"packed fp8": 656, "raw fp8": 576, "bf16": 1152}  # bytes; ada_dsa/kv_cache/layout.py
WITHOUT_ROPE = (
    " without rope"  # ends the layout's name; then a key is 512 values, and a list 3 keys longer
)
LATENT_ROW |= {f"packed fp8{WITHOUT_ROPE}": 528, f"bf16{WITHOUT_ROPE}": 1024}
PREFILL_POOL = 1 << 16  # rows that the benchmark's prefill selects from


@dataclass(frozen=True)
class Work:
    """What a call must at least do.

    Attributes:
        bytes: bytes read, each address once, plus bytes written.
        flops: floating-point operations of the dot products without padding; a multiply-add counts as two.
        fp8: whether the operands of the dot products are fp8; otherwise they are bfloat16.
    """

    bytes: int
    flops: int = 0
    fp8: bool = False

    def __add__(self, other: Work) -> Work:
        if self.flops and other.flops and self.fp8 != other.fp8:
            raise ValueError("fp8 and bfloat16 dot products have no common rate")
        return Work(self.bytes + other.bytes, self.flops + other.flops, self.fp8 or other.fp8)


@dataclass(frozen=True)
class Card:
    """The rates of a GPU.

    Attributes:
        memory: bytes per second.
        bf16, fp8: floating-point operations per second of the tensor cores, for dense operands and
            float32 accumulation.
        cache: bytes of L2.
        source: where the figures come from.
    """

    name: str
    memory: float
    bf16: float
    fp8: float
    cache: int
    source: str

    def seconds(self, work: Work) -> tuple[float, str]:
        """Least time, and what sets it: ``memory`` or ``MMA``."""
        by_memory = work.bytes / self.memory
        by_mma = work.flops / (self.fp8 if work.fp8 else self.bf16)
        return (by_mma, "MMA") if by_mma > by_memory else (by_memory, "memory")


CARDS = (
    Card(
        "RTX 4090", 1008e9, 165.2e12, 330.3e12, 72 << 20,
        "NVIDIA Ada GPU Architecture whitepaper, appendix A (GeForce RTX 4090: 1008 GB/s, 73,728 KB L2; "
        "tensor TFLOPS without sparsity, FP32 accumulate: BF16 165.2, FP8 330.3)",
    ),
    Card(
        "RTX 5090", 1792e9, 209.5e12, 419.0e12, 96 << 20,
        "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix A (GeForce RTX 5090: 1792 GB/s, "
        "98,304 KB L2; tensor TFLOPS without sparsity, FP32 accumulate: BF16 209.5, FP8 419)",
    ),
    Card(
        "H200", 4800e9, 989.4e12, 1978.9e12, 50 << 20,
        "NVIDIA H200 Tensor Core GPU datasheet (4.8 TB/s; BF16 1,979 and FP8 3,958 TFLOPS with "
        "sparsity, halved here); L2 50 MB as in the H100 whitepaper",
    ),
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- works


def paged_logits(lengths: Sequence[int], heads: int = 32, next_n: int = 1) -> Work:
    """Decode logits of requests whose last query sees ``lengths`` keys; each earlier one sees one less.

    Read: each key once for all queries of its request, 132 B; a page table entry, 4 B, for each 64 keys;
    each query with its weights, heads x (128 + 4) B. Written: a float32 for each query and key.
    Flops: 2 x 128 for each query, key and head.
    """
    keys = sum(lengths)
    pages = sum(-(-length // PAGE) for length in lengths)
    pairs = sum(max(0, length - back) for length in lengths for back in range(next_n))
    queries = len(lengths) * next_n
    moved = keys * INDEX_ROW + pages * 4 + queries * heads * (INDEX_DIM + 4) + pairs * 4
    return Work(moved, 2 * pairs * heads * INDEX_DIM, fp8=True)


def ragged_logits(queries: int, keys: int, heads: int = 32) -> Work:
    """Prefill logits of a chunk of ``queries``, the last of which sees all ``keys``.

    Query i of S sees keys - S + 1 + i keys, so there are S x keys - S (S - 1) / 2 pairs. Read: queries with
    weights and keys with scales, once. Written: a float32 for each pair. Flops: 2 x 128 for each pair and
    head.
    """
    pairs = queries * keys - queries * (queries - 1) // 2
    moved = queries * heads * (INDEX_DIM + 4) + keys * INDEX_ROW + pairs * 4
    return Work(moved, 2 * pairs * heads * INDEX_DIM, fp8=True)


def topk_transform(rows: int, width: int, topk: int = TOPK) -> Work:
    """Read: the scores, and a table entry for each chosen index. Written: the result for each."""
    return Work(rows * (width * 4 + min(topk, width) * 4 + topk * 4))


def sparse_mla(
    tokens: int, heads: int, layout: str = "packed fp8", pool: int | None = None, topk: int = TOPK
) -> Work:
    """Attention of each token over ``topk`` rows.

    Read: each selected row once for each token (decode), but no more than the ``pool`` of rows that all
    tokens select from (prefill); indices of 4 B; queries of 2 x 576 B a head. Written: results of 2 x 512 B
    a head. Flops: 2 x (576 + 512) for each token, head and row, with bfloat16 operands in every layout.
    Without a rotary part 512 stands for 576.
    """
    key = VALUE_DIM if layout.endswith(WITHOUT_ROPE) else KEY_DIM
    rows = tokens * topk if pool is None else min(tokens * topk, pool)
    moved = rows * LATENT_ROW[layout] + tokens * topk * 4
    moved += tokens * heads * (key + VALUE_DIM) * 2
    return Work(moved, 2 * tokens * heads * topk * (key + VALUE_DIM))


def pack_rows(tokens: int) -> Work:
    """Quantise bfloat16 rows into the pool: for each token 1152 B and an 8 B slot read, 656 B written."""
    return Work(tokens * (LATENT_ROW["bf16"] + LATENT_ROW["packed fp8"] + 8))


def unpack_rows(rows: int) -> Work:
    """Dequantise rows of the pool: for each 656 B and a 4 B row number read, 1152 B written."""
    return Work(rows * (LATENT_ROW["bf16"] + LATENT_ROW["packed fp8"] + 4))


def _numbers(name: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)=(\S+)", name))


def _lengths(batch: int, context: str) -> list[int]:
    """``32768`` is the length of all; ``131072+31x4096`` is one of 131072 and 31 of 4096."""
    first, _, rest = context.partition("+")
    if not rest:
        return [int(first)] * batch
    count, _, length = rest.partition("x")
    return [int(first)] + [int(length)] * int(count)


def work_of(group: str, name: str) -> Work | None:
    """The work of a benchmark case by its group and name; None for a group without a formula."""
    values = _numbers(name)
    if group == "paged logits":
        heads, next_n = int(values.get("H", 32)), int(values.get("n", 1))
        return paged_logits(_lengths(int(values["B"]), values["ctx"]), heads, next_n)
    size = re.match(r"(\d+)x(\d+)", name)
    if group == "ragged logits" and size:
        return ragged_logits(int(size[1]), int(size[2]), int(values.get("H", 32)))
    if group == "top-k" and size:
        return topk_transform(int(size[1]), int(size[2]))
    if group.startswith("sparse MLA"):
        kind, layout = group.removeprefix("sparse MLA ").split(", ")
        pool = PREFILL_POOL if kind == "prefill" else None
        tokens = int(values["S" if kind == "prefill" else "B"])
        keys = TOPK + 3 if layout.endswith(WITHOUT_ROPE) else TOPK
        return sparse_mla(tokens, int(values["H"]), layout, pool, keys)
    return None


# ------------------------------------------------------------------------------- measured against it


def reached(times: Mapping[tuple[str, str], float], cache: int = 0) -> float:
    """The highest rate of any case, in bytes per second.

    Args:
        times: microseconds by group and name.
        cache: cases of so many bytes or fewer do not count, as they may not have gone to memory.
    """
    works = ((work_of(*key), us) for key, us in times.items())
    rates = [work.bytes / us * 1e6 for work, us in works if work and work.bytes > cache]
    return max(rates, default=0.0)


def share(work: Work, microseconds: float, card: Card) -> float:
    """The least time over the measured one."""
    return card.seconds(work)[0] / (microseconds * 1e-6)


def measured_times(markdown: str, column: str = "native") -> dict[tuple[str, str], float]:
    """Microseconds by group and case, from a column of the tables of ``docs/performance.md``."""
    times: dict[tuple[str, str], float] = {}
    group, header = "", list[str]()
    for line in markdown.splitlines():
        if line.startswith("## "):
            group, header = line[3:].strip(), []
        elif line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            if cells[0] == "case":
                header = cells
            elif column in header and re.fullmatch(r"[\d.]+", cells[header.index(column)]):
                times[group, cells[0]] = float(cells[header.index(column)])
    return times


# ---------------------------------------------------------------------------------------------- tables

_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
CASES: dict[str, list[str]] = {
    "paged logits": [
        *(f"B={b} ctx={c}" for b in (1, 8, 32, 64) for c in (8192, 32_768, 131_072)),
        *(f"B={b} ctx=32768 n={n}" for n in (2, 3) for b in (1, 8, 32)),
        "B=8 ctx=32768 H=64",
        "B=32 ctx=131072+31x4096",
    ],
    "ragged logits": ["2048x2048 H=32", "4096x32768 H=32", "2048x131072 H=32", "4096x32768 H=64"],
    "top-k": [
        *(f"1x{c}" for c in (8192, 32_768, 131_072, 1_048_576)),
        *(f"{r}x32768" for r in (8, 32, 64)),
        *("64x131072", "2048x8192", "2048x32768"),
    ],
    "sparse MLA decode, packed fp8": [f"B={b} H={h}" for h in (8, 16, 64, 128) for b in _BATCHES],
    "sparse MLA decode, raw fp8": [f"B={b} H={h}" for h in (8, 64) for b in (1, 64)],
    "sparse MLA decode, bf16": [f"B={b} H={h}" for h in (8, 64) for b in (1, 64)],
    **{
        f"sparse MLA decode, {rows}{WITHOUT_ROPE}": [
            f"B={b} H={h}" for h in (8, 64) for b in (1, 64)
        ]
        for rows in ("packed fp8", "bf16")
    },
    "sparse MLA prefill, packed fp8": [f"S={s} H={h}" for s in (2048, 8192) for h in (8, 64)],
}

HEAD = """# Rooflines

**Computed, not measured**: the tables have the least time that bytes and dot products allow, at the rates
that the makers state. No kernel of this project has run on an RTX 4090 or an RTX 5090. The formulas are
in the docstrings of `bench/kernels/roofline.py`. A launch takes 2 to 3 us in a CUDA graph. It comes on
top of every figure and is longer than many of them.

"(M)" means that the tensor cores limit the time, not memory. "in L2" means that all bytes of the call fit
the L2 cache of the card. A kernel can then be faster than the figure if its input was just written,
because the figure counts DRAM.

Sparse MLA decode counts every selected row once for each token. Sparse MLA prefill counts the pool of
65,536 rows once. Rows that do not fit L2 are read again; the last column of that table has the time if
DRAM supplies all 2048 rows of each token.
"""


def _us(seconds: float) -> str:
    us = seconds * 1e6
    return f"{us:.2f}" if us < 1 else f"{us:.1f}" if us < 1000 else f"{us:,.0f}"


def _size(value: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("KB", 1e3)):
        if value >= scale:
            return f"{value / scale:.1f} {unit}"
    return f"{value:.0f} B"


def _cell(card: Card, work: Work) -> str:
    seconds, bound = card.seconds(work)
    resident = " in L2" if work.bytes <= card.cache else ""
    return f"{_us(seconds)}{' (M)' if bound == 'MMA' else ''}{resident}"


def document(times: Mapping[tuple[str, str], float]) -> Iterator[str]:
    """The lines of ``docs/roofline.md``."""
    yield HEAD
    for card in CARDS:
        ridge8, ridge16 = card.fp8 / card.memory, card.bf16 / card.memory
        yield (
            f"- {card.name}: {card.memory / 1e9:,.0f} GB/s, bf16 {card.bf16 / 1e12:.0f} and fp8 "
            f"{card.fp8 / 1e12:.0f} TFLOP/s, L2 {card.cache >> 20} MB; memory binds below "
            f"{ridge16:.0f} (bf16) and {ridge8:.0f} (fp8) FLOP/B. {card.source}."
        )
    best = reached(times, CARDS[2].cache)
    if best:
        yield (
            f"- H200 measured: the native times of `docs/performance.md`. Their highest rate is "
            f'{best / 1e12:.2f} TB/s, {best / CARDS[2].memory:.0%} of the stated one. "share" is the least '
            "time at the stated rates over the measured time."
        )
    for group, names in CASES.items():
        prefill = group.startswith("sparse MLA prefill")
        cards = [f"{card.name}, us" for card in CARDS]
        header = ["case", "bytes", "GFLOP", "FLOP/B", *cards, "H200 measured, us", "share"]
        header += ["RTX 4090 / 5090, no reuse in L2, us"] if prefill else []
        yield f"\n## {group}\n"
        yield f"| {' | '.join(header)} |\n|---|{'---:|' * (len(header) - 1)}"
        for name in names:
            work = work_of(group, name)
            assert work is not None, (group, name)
            us = times.get((group, name))
            cells = [name, _size(work.bytes), f"{work.flops / 1e9:,.2f}" if work.flops else "–"]
            cells.append(f"{work.flops / work.bytes:.0f}" if work.flops else "–")
            cells += [_cell(card, work) for card in CARDS]
            cells += [f"{us:.1f}", f"{share(work, us, CARDS[2]):.0%}"] if us else ["–", "–"]
            if prefill:
                tokens, heads = (int(_numbers(name)[x]) for x in "SH")
                cold = sparse_mla(tokens, heads)
                cells.append(" / ".join(_us(card.seconds(cold)[0]) for card in CARDS[:2]))
            yield f"| {' | '.join(cells)} |"
    yield from _other()


def _other() -> Iterator[str]:
    """The tables of KV cache rows and of one decode step of a layer with an indexer."""
    works = {
        f"{what}, {count} rows": work(count)
        for what, work in (
            ("quantise and scatter", pack_rows),
            ("gather and dequantise", unpack_rows),
        )
        for count in (1, 128, 8192)
    }
    yield "\n## KV cache rows\n"
    yield f"| case | bytes | {' | '.join(f'{c.name}, us' for c in CARDS)} |"
    yield "|---|---:|---:|---:|---:|"
    for name, work in works.items():
        cells = [name, _size(work.bytes), *(_cell(card, work) for card in CARDS)]
        yield f"| {' | '.join(cells)} |"
    yield "\n## One decode step of a layer with an indexer (logits, top-k, sparse MLA; 8 heads)\n"
    yield "The sum of three least times. Each kernel, of which there are at least three, adds a launch.\n"
    yield f"| case | {' | '.join(f'{c.name}, us' for c in CARDS)} |\n|---|---:|---:|---:|"
    for batch, context in ((1, 8192), (1, 131_072), (8, 32_768), (32, 32_768)):
        parts = (
            paged_logits([context] * batch), topk_transform(batch, context), sparse_mla(batch, 8)
        )  # fmt: skip
        cells = [_us(sum(card.seconds(part)[0] for part in parts)) for card in CARDS]
        yield f"| B={batch} ctx={context} | {' | '.join(cells)} |"


def main() -> None:
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    text = (ROOT / "docs" / "performance.md").read_text()
    today = datetime.datetime.now(datetime.UTC).date()
    lines = list(document(measured_times(text)))
    lines[0] += f"\nMade {today} by `python -m bench.kernels.roofline`.\n"
    print("\n".join(lines))


if __name__ == "__main__":
    main()
