"""Datasets for offline learning:

python -m benchmark.datasets export RUN FOLDER    the replay of a finished run, as a dataset
python -m benchmark.datasets import ID FOLDER     a dataset of Minari's, in the same layout
python -m benchmark.datasets inspect FOLDER       what a dataset holds
"""

import shlex
import sys
from pathlib import Path

import numpy as np
import tyro

from benchmark.datasets import layout
from benchmark.jobs import require


def export(
    run: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[str],
    block_records: int = 0,
    partial: bool = False,
    minari: str = "",
):
    """Writes the whole replay of a finished run as a dataset. Refuses one that does not hold all of the run.

    Args:
        run: folder of the run
        folder: new folder of the dataset
        block_records: records of a block; 0: a fiftieth of all, and at most a million
        partial: also of an unfinished run, or of a replay that has lost its first rows
        minari: name of a dataset of Minari's to write as well, such as minatar/breakout/dqn-v0
    """
    require(not Path(folder).exists(), f"{folder} exists already; remove it, or choose another folder")
    if minari:
        from benchmark.datasets import minari_format

        minari_format.check_new(minari_format.load_minari(), minari)
    from benchmark.datasets.export import export_run  # the run's script comes with it, and JAX

    require(block_records >= 0, f"--block-records cannot be {block_records}")
    info, count, gather = export_run(run, partial)
    with layout.new_folder(folder) as temporary:
        info = layout.write_dataset(temporary, info, count, gather, block_records)
        if minari:
            minari_format.write_minari(temporary, minari)
    print(f"{folder}: {info['transitions']:,} transitions of {info['env_id']}, {info['updates']:,} updates are 1X")
    if info["unseen_cuts"]:
        print(f"{info['unseen_cuts']} episodes were cut where the next one begins alike: they are joined to it")


def import_(
    dataset_id: tyro.conf.Positional[str],
    folder: tyro.conf.Positional[str],
    block_records: int = 0,
):
    """Writes a dataset of Minari's, which must be on this machine, in our layout.

    Args:
        dataset_id: name of the dataset, such as mujoco/hopper/medium-v0
        folder: new folder of the dataset
        block_records: records of a block; 0: a fiftieth of all, and at most a million
    """
    require(not Path(folder).exists(), f"{folder} exists already; remove it, or choose another folder")
    require(block_records >= 0, f"--block-records cannot be {block_records}")
    from benchmark.datasets.minari_format import import_minari

    info, count, gather = import_minari(dataset_id, shlex.join(sys.argv))
    with layout.new_folder(folder) as temporary:
        layout.write_dataset(temporary, info, count, gather, block_records)
    print(f"{folder}: {info['transitions']:,} transitions of {info['env_id']}")


def inspect(folder: tyro.conf.Positional[str]):
    """Prints what a dataset holds, and what it takes in memory.

    Args:
        folder: folder of a dataset, ours or one of the DQN replay dataset's
    """
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


if __name__ == "__main__":
    commands = {"export": export, "import": import_, "inspect": inspect}
    tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
