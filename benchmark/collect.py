"""Run folders to one tidy table: python -m benchmark.collect --runs-dir runs --out benchmark/results/NAME

Writes NAME/curves.csv (algo, replay_ratio, env, seed, step, metric, value; evaluation returns) and NAME/run.json (what
made each run: command, commit, versions, hardware, wall time). Folders that hold no finished run are named, not used.
"""

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path

import tyro

METRICS = ("eval/episodic_return",)


@dataclass(frozen=True)
class Args:
    out: str
    """folder to write"""
    runs_dir: str = "runs"
    """folder of the runs' folders"""
    unfinished: bool = False
    """use unfinished runs too, as far as they are"""


def read_run(folder):
    """One run's folder -> its rows (algo, replay_ratio, env, seed, step, metric, value), args and provenance."""
    args = json.loads((folder / "args.json").read_text())
    head = [args["exp_name"], args["replay_ratio"], args["env_id"], args["seed"]]
    with open(folder / "metrics.csv") as file:
        rows = [[*head, int(row["step"]), row["tag"], float(row["value"])] for row in csv.DictReader(file)]
    return rows, args, json.loads((folder / "run.json").read_text())


def main(args: Args):
    folders = sorted(path.parent for path in Path(args.runs_dir).glob("*/args.json"))
    rows, made = [], {}
    for folder in folders:
        if not args.unfinished and not (folder / "done").exists():
            print(f"left out, unfinished: {folder}")
            continue
        own, arguments, starts = read_run(folder)
        rows += [row for row in own if row[5] in METRICS]
        for start in starts:  # where a run lay says nothing about its result
            start["command"] = re.sub(r" --runs-dir \S+", "", start["command"])
        made[folder.name] = {"args": arguments, "starts": starts}
    if not rows:
        raise SystemExit(f"error: no finished run in {args.runs_dir}")
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "curves.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["algo", "replay_ratio", "env", "seed", "step", "metric", "value"])
        writer.writerows([*row[:6], f"{row[6]:.6g}"] for row in sorted(rows, key=lambda row: [str(row[0]), *row[1:6]]))
    (out / "run.json").write_text(json.dumps(made, indent=1) + "\n")
    print(f"{len(made)} runs, {len(rows)} values: {out / 'curves.csv'}")


if __name__ == "__main__":
    main(tyro.cli(Args))
