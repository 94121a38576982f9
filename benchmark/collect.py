"""Run folders to one tidy table: python -m benchmark.collect --suite dmc_cpu

Writes `benchmark/results/SUITE/curves.csv` (suite, algo, replay_ratio, env, seed, step, metric, value) and beside it a
`run.json` (what made each run: arguments, commands, commits, versions, hardware, wall time). Finished runs replace
their old rows, runs that are not here keep theirs, so a sweep may be collected from several machines; twice changes
nothing. A folder that is no run of the suite, or whose files are not whole, is named and left out, and the exit code
is 1.
"""

import csv
import fcntl
import io
import json
import math
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmark.jobs import read_json, require
from benchmark.suites import SUITES
from benchmark.suites.suite import EVALUATION

COLUMNS = ["suite", "algo", "replay_ratio", "env", "seed", "step", "metric", "value"]


@dataclass(frozen=True)
class Args:
    suite: str
    """name of the suite, in benchmark/suites/"""
    runs_dir: str = ""
    """folder of the runs' folders; runs/SUITE if not given"""
    results_dir: str = "benchmark/results"
    """folder of the suites' tables"""
    unfinished: bool = False
    """use unfinished runs too, as far as they are"""


class Unusable(Exception):
    """A folder that cannot be collected; its text says why."""


def read_run(folder, suite):
    """A run's folder -> its rows (COLUMNS), its arguments and its starts. Raises Unusable."""
    try:
        args = json.loads((folder / "args.json").read_text())
        head = [suite, args["exp_name"], float(args["replay_ratio"]), args["env_id"], int(args["seed"])]
        starts = json.loads((folder / "run.json").read_text())
        commands = [start["command"] for start in starts]
        lines = (folder / "metrics.csv").read_text().splitlines(keepends=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Unusable(f"no run of this project ({type(error).__name__}: {error})") from error
    if args["env_id"] not in SUITES[suite].scores:
        raise Unusable(f"{args['env_id']} is no task of {suite}")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            step, tag, value = line.removesuffix("\n").split(",")
            row = [*head, int(step), tag, float(value)]
        except ValueError as error:
            raise Unusable(f"line {number} of its metrics.csv is damaged") from error
        if tag in {EVALUATION, *SUITES[suite].parts}:
            rows.append(row)
    if not lines or not lines[-1].endswith("\n"):
        raise Unusable("its metrics.csv is cut short")
    every = args.get("eval_interval")
    if (folder / "done").exists() and every:
        done = read_json(folder / "done")
        if not done:
            raise Unusable("its file done is damaged")
        missing = {*range(every, done["step"] + 1, every)} - {row[5] for row in rows if row[6] == EVALUATION}
        if missing:
            raise Unusable(f"it is done, but its metrics.csv lacks the evaluation of step {min(missing)}")
    for start, command in zip(starts, commands, strict=True):  # where a run lay says nothing about its result
        start["command"] = re.sub(r" --runs-dir \S+", "", command)
    return rows, args, starts


def read_table(path):
    """An existing curves.csv -> its rows, values as they stand there; [] if there is none."""
    if not path.exists():
        return []
    with open(path) as file:
        rows = list(csv.DictReader(file))
    require(not rows or [*rows[0]] == COLUMNS, f"{path} has other columns than {', '.join(COLUMNS)}; move it away")
    return [[row[name] for name in COLUMNS] for row in rows]


def key(row):
    """What names a row's run, in the types that sort well."""
    return (row[1], float(row[2]), row[3], int(row[4]))


def replace(path, text):
    """Writes a whole file or nothing; a file that would not change is left alone."""
    if not path.exists() or path.read_text() != text:
        beside = path.with_name(path.name + ".tmp")
        beside.write_text(text)
        beside.rename(path)


def collect(suite, runs_dir, results_dir, unfinished=False):
    """Brings the suite's table up to date with the runs in a folder -> (runs collected, folders that were left out)."""
    rows, made, left, taken = {}, {}, [], {}
    for folder in sorted(path for path in Path(runs_dir).glob("*") if path.name != "sweep"):
        if (folder / "args.json").exists() and not (folder / "done").exists() and not unfinished:
            print(f"not finished: {folder}")
            continue
        try:
            own, args, starts = read_run(folder, suite)
            name = (args["exp_name"], float(args["replay_ratio"]), args["env_id"], int(args["seed"]))
            if (other := taken.setdefault(name, folder)) is not folder:
                raise Unusable(f"it is the same run as {other}; move one of them away")
        except Unusable as error:
            left.append(folder)
            print(f"left out: {folder}: {error}", file=sys.stderr)
            continue
        for row in own:
            if not math.isfinite(row[7]):
                print(f"note: {folder} has the value {row[7]} at step {row[5]}", file=sys.stderr)
            rows.setdefault(key(row), []).append([*row[:7], f"{row[7]:.6g}"])
        made[folder.name] = {"args": args, "starts": starts}
    if made:
        out = Path(results_dir, suite)
        out.mkdir(parents=True, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)  # of two sweeps that end together, one waits, lest it drop the other's rows
        old = [row for row in read_table(out / "curves.csv") if key(row) not in rows]
        table = sorted(
            [*old, *(row for own in rows.values() for row in own)], key=lambda row: (*key(row), int(row[5]), row[6])
        )
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(
            [COLUMNS, *([*row[:2], f"{float(row[2]):g}", *row[3:]] for row in table)]
        )
        known = json.loads((out / "run.json").read_text()) if (out / "run.json").exists() else {}
        replace(out / "curves.csv", text.getvalue())
        replace(out / "run.json", json.dumps(dict(sorted((known | made).items())), indent=1) + "\n")
        os.close(lock)
    return len(made), left


def main(args: Args):
    require(args.suite in SUITES, f"there is no suite {args.suite!r}; there are {', '.join(SUITES)}")
    runs_dir = args.runs_dir or f"runs/{args.suite}"
    require(
        Path(runs_dir).is_dir(), f"there is no folder {runs_dir}; run benchmark.sweep first, or name it by --runs-dir"
    )
    count, left = collect(args.suite, runs_dir, args.results_dir, args.unfinished)
    if count:
        print(f"{count} runs of {runs_dir} are in {Path(args.results_dir, args.suite, 'curves.csv')}")
    else:
        print(f"error: no finished run of {args.suite} in {runs_dir}", file=sys.stderr)
    sys.exit(1 if left or not count else 0)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a folder that cannot be made, a full disk
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
