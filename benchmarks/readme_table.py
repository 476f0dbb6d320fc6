"""The README's table of speed, made from what the benchmarks recorded in `benchmarks/results`.

    python benchmarks/readme_table.py           # prints the table
    python benchmarks/readme_table.py --write   # puts it into the README, between its two markers

To measure a row again, run the command beside it with `--record NAME`, where NAME is that of its file.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from frame import RESULTS, ROOT

BEGIN_MARK, END_MARK = "<!-- speed: python benchmarks/readme_table.py --write -->\n", "<!-- end of speed -->"

Result = dict[str, Any]


@dataclass(frozen=True)
class TableRow:
    """One line of the table: what is timed, and the words for the result that is recorded under `name`."""

    name: str
    subject: Callable[[Result], str]
    words: Callable[[Result], str]


def mebibytes(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"


def growth(result: Result) -> str:
    first, last = result["growth"][0], result["growth"][-1]
    ratio = (last["seconds"] / last["nodes"]) / (first["seconds"] / first["nodes"])
    return f"at {last['nodes']:,} nodes, {ratio:.2f} times as long per node"


def each(values: dict[str, float], digits: int) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values.values())


ROWS = (
    TableRow(
        "hypernetwork",
        lambda r: f"GHN-2 forward and backward with the decoder, 8 training graphs, {r['nodes']:,} nodes",
        lambda r: (
            f"{r['forward_seconds'] + r['backward_seconds']:.2f} s; {growth(r)}; its message passing, level by "
            f"level, is {r['node_by_node_ratio']:.0f} times as fast as node by node, with the same states"
        ),
    ),
    TableRow(
        "generate_million",
        lambda r: "a million architectures sampled, checked, counted and written",
        lambda r: (
            f"{r['seconds']:.0f} s, {r['bytes'] / 1e6:.0f} MB; at most {mebibytes(r['peak_rss_bytes'])} per process"
        ),
    ),
    TableRow(
        "generate_one_core",
        lambda r: "one worker, all of it on one core",
        lambda r: (
            f"{r['architectures_per_second']:,.0f} architectures per second; adding up summaries of blocks is "
            f"{r['compiled_ratio']:.0f} times as fast as compiling programs"
        ),
    ),
    TableRow(
        "read_architectures",
        lambda r: "a stored million",
        lambda r: (
            f"opens in {r['open_seconds']:.1f} s with at most {mebibytes(r['peak_rss_bytes'])}; a row at random "
            f"takes {1e3 * r['row_seconds']:.1f} ms, its whole shard {r['shard_ratio']:.0f} times as long"
        ),
    ),
    TableRow(
        "similarity",
        lambda r: "the nearest of a million embeddings of 32 numbers, for 1,000 queries",
        lambda r: (
            f"{r['search']['32']['seconds']:.1f} s; of 100,000 graphs by the Weisfeiler-Lehman kernel, for 300 "
            f"queries, {r['kernel_seconds']:.0f} s, {sum(r['kernel_cpu_ms'].values()):.1f} ms of CPU per graph"
        ),
    ),
    TableRow(
        "train_step",
        lambda r: (
            "a training step at the published settings for CIFAR-10 (8 architectures of width 32 to 128, 64 images)"
        ),
        lambda r: (
            f"{r['step_seconds']:.1f} s, {r['step_seconds'] / r['plain_loop_seconds']:.2f} of a plain loop that "
            f"builds modules and predicts node by node; the hypernetwork takes {r['hypernetwork_share']:.1%}"
        ),
    ),
    TableRow(
        "train_step_64",
        lambda r: "64 architectures per step",
        lambda r: f"at most {r['peak_rss_bytes'] / 2**30:.1f} GiB of memory, as with 8",
    ),
    TableRow(
        "depthwise",
        lambda r: "depthwise convolutions of a target network, forward and backward, at 14×14",
        lambda r: f"PyTorch's own backward pass would make them {r['ratio']['all']:.0f} times as slow",
    ),
    TableRow(
        "scaling",
        lambda r: f"{r['workers']} workers of one thread",
        lambda r: (
            f"{r['speedup']:.2f} times the architectures per second of one; the slower takes {r['imbalance']:.2f} of "
            "their mean, and Ray's own processes share the two cores"
        ),
    ),
    TableRow(
        "sgd_scaling",
        lambda r: f"networks trained (stage `sgd`) and measured (stage `evaluate`) by {r['workers']} workers",
        lambda r: f"{r['sgd']['speedup']:.2f} and {r['evaluate']['speedup']:.2f} times as many a second as by one",
    ),
    TableRow(
        "training_costs",
        lambda r: "predicted seconds of target networks, by which workers share",
        lambda r: ", ".join(f"relative error {of['relative_error']:.0%} at {side}×{side}" for side, of in r.items()),
    ),
    TableRow(
        "precision",
        lambda r: "bfloat16 instead of fp32, loss after 300 steps",
        lambda r: (
            f"{r['bf16_loss']:.2f} and {r['fp32_loss']:.2f}, three seeds each; the difference is "
            f"{abs(r['difference']) / r['standard_error']:.1f} standard errors"
        ),
    ),
    TableRow(
        "predict",
        lambda r: f"{', '.join(r['seconds'])}: traced and predicted",
        lambda r: f"{each(r['seconds'], 2)} s: {each(r['forward_passes'], 1)} of the time of one image's forward pass",
    ),
)


def table() -> str:
    """Return the table in Markdown: a row for each result that is recorded, with its command and machine."""
    lines = ["| | | command |\n", "| --- | --- | --- |\n"]
    machines: list[str] = []
    for row in ROWS:
        path = RESULTS / f"{row.name}.json"
        if not path.exists():
            continue
        record = json.loads(path.read_text())
        if record["machine"] not in machines:
            machines.append(record["machine"])
        result = record["result"]
        mark = "*" * machines.index(record["machine"])
        lines.append(f"| {row.subject(result)} | {row.words(result)}{mark} | `{record['command']}` |\n")
    named = "; ".join(f"{'*' * number} {machine}".strip() for number, machine in enumerate(machines))
    return f"{''.join(lines)}\nMeasured on 2 cores of {named}.\n"


def main(write: Annotated[bool, typer.Option("--write", help="Put it into the README.")] = False) -> None:
    """Make the README's table of speed."""
    if not write:
        print(table())
        return
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    readme.write_text(f"{before}{BEGIN_MARK}\n{table()}\n{end}{after}")


if __name__ == "__main__":
    typer.run(main)
