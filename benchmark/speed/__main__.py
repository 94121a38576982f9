"""Speed on the machine at hand, as ratios within one run: python -m benchmark.speed

The unit is the seed-update: one gradient update (actor, critic, temperature) of one seed. Measured are

own       the full loop of a script (environment, replay, resets' branch and updates in one program) against its updates
          alone in a scan, for several ratios, with one seed and with five
buffers   the same loop with a replay of 10,000 and of 1,000,000 transitions
bound     the updates on one core with one thread against plain matrix products of as many floating-point operations:
          what a faster program for the same products could win at most
pinned    one process per core, each pinned and with one thread, against one process on all cores
sbx       SAC against SBX (Stable Baselines Jax) on a MuJoCo task of Gymnasium that EnvPool has too, at the same ratio,
          batch size and widths: one run, and several seeds, which SBX can only train one after another or in processes
minatar   dqn.py and rainbow.py on Breakout of MinAtar, one core and thread: updates and environment steps per second,
          with a replay of 10,000, 100,000 and 1,000,000 transitions, and with five seeds in one program
atari     dqn_atari.py, drq_eps.py and der.py on Breakout of Atari, one core and thread, with the published widths, with
          one seed and with five
spr       spr.py, sr_spr.py and bbf.py in the same way, with one seed and with five: on request, and meant for GPUs

Every program is a process of its own. Those of a comparison are compiled and warmed up first; then they work in turns,
while the others sleep, since machines are noisy: a ratio is taken within a turn, and given with its spread over turns.
"""

import datetime
import json
import os
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmark.jobs import require
from benchmark.speed import measurements

PARTS = ("own", "buffers", "bound", "pinned", "sbx", "minatar", "atari", "spr")


@dataclass(frozen=True)
class Args:
    script: str = "algos/sr_sac.py"
    """the script to time; against SBX it is always algos/sac.py"""
    env_id: str = "CheetahRun-v1"
    """the task to time it on"""
    sbx_env_id: str = "HalfCheetah-v5"
    """the task of the comparison with SBX: known to EnvPool and, with MuJoCo, to Gymnasium"""
    sbx_python: str = ".venv/sbx/bin/python"
    """the Python that has SBX, from requirements-sbx.txt; `make speed` installs it"""
    parts: tuple[str, ...] = ("own", "buffers", "bound", "pinned", "sbx", "minatar", "atari")
    """what to measure, of own, buffers, bound, pinned, sbx, minatar, atari and spr"""
    ratios: tuple[int, ...] = (1, 8, 32)
    """replay ratios of own; the other parts take the first two"""
    seeds: int = 5
    """seeds side by side in one program, where there are several"""
    batch_size: int = 256
    """transitions per update"""
    hidden_dim: int = 256
    """width of the two hidden layers of every network"""
    rounds: int = 3
    """turns of every program"""
    seconds: float = 4.0
    """how long one turn should last"""
    json: str = ""
    """a file to which one JSON line per measurement is appended"""
    against: str = ""
    """a folder of other versions of the scripts: only compares them, in turns, with those beside --script"""
    scripts: tuple[str, ...] = ()
    """the names of those to compare with --against; all that both folders have if not given"""


def check(args):
    unknown = [part for part in args.parts if part not in PARTS]
    require(args.parts and not unknown, f"--parts takes {', '.join(PARTS)}, not {' '.join(unknown) or 'nothing'}")
    continuous = Path(args.script).is_file() and "def actor_loss(" in Path(args.script).read_text()
    require(continuous, f"--script {args.script} has no continuous actions; give sac.py or one of its children")
    numbers = (args.rounds, args.seconds, args.seeds, args.batch_size, args.hidden_dim, *args.ratios)
    require(args.ratios and min(numbers) > 0, "--rounds, --seconds, --seeds, sizes and --ratios must be positive")
    require(not args.against or Path(args.against).is_dir(), f"--against {args.against} is no folder")
    missing = not args.against and "sbx" in args.parts and not Path(args.sbx_python).exists()
    others = " ".join(part for part in args.parts if part != "sbx") or "own"
    require(not missing, f"no SBX at {args.sbx_python}: `make speed` installs it; without it: --parts {others}")


def machine_of(args, cores):
    """What every measurement is noted with."""
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[-1].split("\n")[0]
    git = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit,
        "cpu": cpu,
        "cores": len(cores),
        "system": platform.system(),
        "python": platform.python_version(),
        "batch_size": args.batch_size,
        "hidden_dim": args.hidden_dim,
    }


def measure(args, note, cores):
    if args.against:
        measurements.measure_against(args, note, cores)
        return
    if {*args.parts} - {"minatar", "atari", "spr"}:
        print(f"Batch {args.batch_size}, two hidden layers of {args.hidden_dim}:\n", flush=True)
    if "own" in args.parts:
        print(f"{args.script} on {args.env_id}:\n", flush=True)
        measurements.measure_own(args, note)
    if "buffers" in args.parts:
        measurements.measure_buffers(args, note)
    if "bound" in args.parts:
        measurements.measure_bound(args, note, cores)
    if "pinned" in args.parts:
        measurements.measure_pinned(args, note, cores)
    if "sbx" in args.parts:
        measurements.measure_sbx(args, note, cores)
    if "minatar" in args.parts:
        measurements.measure_minatar(args, note, cores)
    for part in ("atari", "spr"):
        if part in args.parts:
            measurements.measure_atari(args, note, cores, part)


def main(args: Args):
    check(args)
    cores = sorted(os.sched_getaffinity(0))
    machine = machine_of(args, cores)
    lines, file = [], open(args.json, "a") if args.json else None

    def note(part, own, **what):
        rates = [round(rate, 3) for rate in own["rates"]]
        own = {name: value for name, value in own.items() if name != "rates"}
        lines.append(json.dumps({"part": part} | machine | what | {"seed_updates_per_s": rates} | own))
        if file:  # at once: a later part may fail
            print(lines[-1], file=file, flush=True)

    print(f"{machine['cpu']}, {len(cores)} cores, commit {machine['commit'][:7]}, {machine['date']}.")
    print(f"Median of {args.rounds} turns of {args.seconds:g} s each (least to most).\n", flush=True)
    measure(args, note, cores)
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args, prog="python -m benchmark.speed"))
    except OSError as error:  # a file that cannot be opened, a full disk, a closed pipe
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
