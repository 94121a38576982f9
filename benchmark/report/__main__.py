"""Curves to figures, tables and verdicts: python -m benchmark.report --suite dmc_cpu

Reads `benchmark/results/SUITE/curves.csv` and `run.json`, which benchmark.collect wrote. Writes scores.csv,
aggregates.csv and comparison.csv beside them, and figures with a report.md to `docs/results/SUITE/`. A run's score is
the suite's one statistic, fixed beforehand: the mean of its metric over a window of steps. Comparisons with
published runs take the same statistic of both, from `benchmark/published/` or, with --reference FILE, from raw curves,
which are then drawn too. statistics.py says what the intervals are.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmark.jobs import require
from benchmark.report.comparison import prepare
from benchmark.report.figures import draw_curves, draw_iqm, draw_profiles, draw_ratio, drawn_ratios
from benchmark.report.page import comparison_cells, page, several_ratios, write_tables
from benchmark.report.statistics import aggregate


@dataclass(frozen=True)
class Args:
    suite: str
    """name of the suite, in benchmark/suites/"""
    results_dir: str = "benchmark/results"
    """folder of the suites' tables"""
    docs_dir: str = "docs/results"
    """folder of the suites' figures and pages"""
    reference: str | None = None
    """published raw curves to draw and compare: .csv or .csv.gz with algo, replay_ratio, task, seed, step, return"""
    reference_algos: tuple[str, ...] = ("sr_sac", "sac")
    """published algorithms to compare with, the preferred first"""
    labels: tuple[str, ...] = ()
    """what to call algorithms: name=label name=label"""
    bootstrap_reps: int = 2000
    """resamples behind each bootstrap interval"""
    seed: int = 0
    """of the bootstrap"""


def draw(results, aggregates, folder):
    """Writes all figures, and removes those that would belong to other curves."""
    for ratio in drawn_ratios(results):
        draw_curves(results, ratio, folder / f"curves_rr{ratio:g}.png")
    if several_ratios(aggregates):
        draw_ratio(results, aggregates, folder / "ratio.png")
    else:
        (folder / "ratio.png").unlink(missing_ok=True)
    if aggregates:
        draw_iqm(results, folder / "iqm.png")
        draw_profiles(results, folder / "profiles.png")


def main(args: Args):
    results = prepare(args)
    aggregates = {c: (*results.estimate(matrix, aggregate), len(matrix)) for c, matrix in results.matrices.items()}
    tables, docs = Path(args.results_dir, args.suite), Path(args.docs_dir, args.suite)
    docs.mkdir(parents=True, exist_ok=True)
    write_tables(results, aggregates, tables)
    draw(results, aggregates, docs)
    (docs / "report.md").write_text(page(args, results, aggregates))
    for row in results.comparisons:
        task, algo, ratio, ours, theirs, difference, verdict = comparison_cells(row, results.look)
        print(f"{task}, {algo}, ratio {ratio}: {ours}, published {theirs}, difference {difference}: {verdict}")
    for line in results.remarks:
        print(f"note: {line}")
    print(f"tables in {tables}/, figures and text in {docs}/report.md")


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, prog="python -m benchmark.report"))
    except OSError as error:  # a folder that cannot be made, a full disk, a closed pipe
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
