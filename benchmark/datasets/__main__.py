"""Datasets for offline learning, in the layout of the DQN replay dataset.

python -m benchmark.datasets export RUN FOLDER  writes the replay of a finished run as a dataset. It refuses one that
does not hold all of the run. With --minari NAME the same data become a dataset of Minari's, too.

python -m benchmark.datasets import NAME FOLDER  writes a dataset of Minari's, which must be on this machine.

python -m benchmark.datasets inspect FOLDER  prints what a dataset holds: ours, or one run of the DQN replay dataset.
"""

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from benchmark.datasets import layout
from benchmark.jobs import require


@dataclasses.dataclass(frozen=True)
class Args:
    action: tyro.conf.Positional[Literal["export", "import", "inspect"]]
    """what to do"""
    source: tyro.conf.Positional[str]
    """folder of a run (export) or of a dataset (inspect), or the name of a dataset of Minari's (import)"""
    folder: tyro.conf.Positional[str] = ""
    """the dataset's new folder (export, import)"""
    block_records: int = 0
    """records of a block; 0: a fiftieth of all, and at most a million"""
    partial: bool = False
    """export an unfinished run, too, or a replay that has lost its first rows"""
    script: str = ""
    """the script that made the run; if not given, the one that its record names"""
    minari: str = ""
    """name of a dataset of Minari's that export writes as well, such as ours/breakout-v0"""


def export(args):
    """A run's replay becomes a dataset."""
    if args.minari:
        from benchmark.datasets import minari_format

        minari_format.check_new(minari_format.load_minari(), args.minari)
    from benchmark.datasets.export import export_run  # the run's script comes with it, and JAX

    info, count, gather = export_run(args.source, args.partial, args.script)
    with layout.new_folder(args.folder) as temporary:
        info = layout.write_dataset(temporary, info, count, gather, args.block_records)
        if args.minari:
            minari_format.write_minari(temporary, args.minari)
    print(f"{args.folder}: {info['transitions']:,} transitions of {info['env_id']}, {info['updates']:,} updates are 1X")
    if info["unseen_cuts"]:
        print(f"{info['unseen_cuts']} episodes were cut where the next one begins alike: they are joined to it")


def import_minari(args):
    """A dataset of Minari's becomes one of ours."""
    from benchmark.datasets import minari_format

    info, count, gather = minari_format.import_minari(args.source, shlex.join(sys.argv))
    with layout.new_folder(args.folder) as temporary:
        layout.write_dataset(temporary, info, count, gather, args.block_records)
    print(f"{args.folder}: {info['transitions']:,} transitions of {info['env_id']}")


def inspect(folder):
    """Prints what a dataset holds, and what it takes in memory."""
    info = layout.read_info(folder)
    numbers = layout.block_numbers(folder, info)
    data = layout.read(folder, observations=False)
    shape, dtype = layout.read_header(folder, "observation", numbers[0])
    records = len(data["valid"])
    task = f"{info['env_id']}, seed {info['seed']}, by {info['script']}" if info else "of no known task"
    gaps = sorted({*range(numbers[-1] + 1)} - {*numbers})
    record_bytes = int(np.prod(shape[1:])) * dtype.itemsize
    block_bytes = shape[0] * record_bytes
    rows = {
        "task": task,
        "command": info.get("command", "unknown"),
        "records": f"{records:,} in {len(numbers)} blocks" + (f", without {gaps}" if gaps else ""),
        "transitions": f"{int(data['valid'].sum()):,}",
        "episodes": f"{int(data['terminal'].sum()):,} terminated, {int(data['truncated'].sum()):,} cut",
        "observation": f"{shape[1:]} {dtype}, {int(data['stack'])} in a state",
        "rewards": f"{info.get('reward', 'unknown')}, {data['reward'].min():g} to {data['reward'].max():g}",
        "1X": f"{info['updates']:,} updates" if info.get("updates") else "unknown",
        "scores": f"random {info.get('random_score')}, final {info.get('final_score')}",
        "in memory": f"{block_bytes / 1e6:,.1f} MB a block, {records * record_bytes / 1e6:,.1f} MB in all",
    }
    for name, value in rows.items():
        print(f"{name:12} {value}")
    print("\ntenth of the data   episodes   mean return")
    for tenth, (count, mean) in enumerate(returns_by_tenth(data), 1):
        print(f"{tenth:17} {count:10,} {mean:13.2f}")


def returns_by_tenth(data):
    """Episodes that end in each tenth of the records -> their number and mean return."""
    ends = np.flatnonzero(data["terminal"] | data["truncated"])
    totals = np.cumsum(data["reward"] * data["valid"], dtype=np.float64)[ends]
    returns = np.diff(totals, prepend=0)
    tenth = ends * 10 // len(data["valid"])
    for number in range(10):
        own = returns[tenth == number]
        yield len(own), own.mean() if len(own) else np.nan


def main(args):
    given = args.block_records or args.partial or args.script or args.minari or args.folder
    if args.action == "inspect":
        require(not given, "inspect takes a folder and nothing else")
        inspect(args.source)
        return
    require(args.folder, f"{args.action} needs the dataset's new folder, too")
    require(not Path(args.folder).exists(), f"{args.folder} exists already; remove it, or choose another folder")
    require(args.block_records >= 0, f"--block-records cannot be {args.block_records}")
    if args.action == "export":
        export(args)
    else:
        only_export = args.partial or args.script or args.minari
        require(not only_export, "--partial, --script and --minari are for export")
        import_minari(args)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a file that cannot be read, a full disk
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
