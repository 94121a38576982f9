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
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro

from benchmark.jobs import require

PARTS = ("own", "buffers", "bound", "pinned", "sbx", "minatar", "atari", "spr")
PINNED = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"} | dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)


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


# dqn.py's network on MinAtar, for all scripts there.
MINATAR = {"env_id": "Breakout-MinAtar", "hidden_dim": 128, "padding": "VALID"}
ATARI = {"env_id": "Breakout-v5", "chunk": 20}  # with the script's own settings; a chunk lasts long enough


class Worker:
    """A measuring process: on one core and with one thread if a core is named. It begins when it is told to."""

    def __init__(self, words, core=None):
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ  # several share a GPU's memory
        if core is not None:
            environment |= PINNED | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {PINNED['XLA_FLAGS']}".strip()}
            words = ["taskset", "--cpu-list", str(core), *words]
        self.words, self.environment, self.process = words, environment, None

    def begin(self):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
        self.process = subprocess.Popen(self.words, env=self.environment, **pipes)

    def tell(self, seconds):
        print(seconds, file=self.process.stdin, flush=True)

    def answer(self):
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        sys.exit(f"error: a measuring process ended with code {self.process.wait()}: {' '.join(self.words)}")


def program_worker(core=None, **work):
    """A process that measures one of speed_programs.PROGRAMS."""
    work = {"program": "loop", "seeds": 1, "ratio": 1, "buffer_size": 100_000} | work
    return Worker([sys.executable, "-m", "benchmark.speed_programs", json.dumps(work)], core)


def own_worker(args, core=None, **what):
    own = {"script": args.script, "env_id": args.env_id, "batch_size": args.batch_size, "hidden_dim": args.hidden_dim}
    return program_worker(core, **own | what)


def sbx_worker(args, ratio, seed=1, core=None):
    work = {"env_id": args.sbx_env_id, "ratio": ratio, "seed": seed, "buffer_size": 100_000}
    work |= {"batch_size": args.batch_size, "hidden_dim": args.hidden_dim}
    words = [args.sbx_python, str(Path(__file__).with_name("speed_sbx.py")), json.dumps(work)]
    return Worker(words, core)


def in_turns(args, programs, large=False):
    """Lets programs, {name: workers that work at once}, take turns -> {name: what was found}.

    Large ones are built one after another; one whose process ends then, as for want of memory, is left out and named.

    Found are `rates`, the seed-updates per second of each turn, all workers together, `processes`, `memory_mb` of all,
    and of the first worker `build_s` (seconds to compile and warm up), `env_us` and `versions`.
    """
    try:
        found = {}
        if not large:
            for worker in [worker for workers in programs.values() for worker in workers]:
                worker.begin()
        for name, workers in programs.items():
            try:
                if large:
                    for worker in workers:
                        worker.begin()
                answers = [worker.answer() for worker in workers]
            except SystemExit as error:
                if not large:
                    raise
                print(f"left out: {name}; {error.code}", file=sys.stderr, flush=True)
            else:
                found[name] = answers[0] | {"processes": len(answers), "rates": []}
        for _ in range(args.rounds):
            for name, workers in [(name, workers) for name, workers in programs.items() if name in found]:
                for worker in workers:
                    worker.tell(args.seconds)
                answers = [worker.answer() for worker in workers]
                found[name]["rates"].append(sum(one["rate"] for one in answers))
                found[name]["memory_mb"] = sum(one["memory_mb"] for one in answers)
    finally:
        for worker in [worker for workers in programs.values() for worker in workers if worker.process]:
            worker.process.kill()
            worker.process.wait()
    return found


def spread(values, digits=2):
    return f"{np.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def over(one, two):
    """Ratio of two programs' rates, turn by turn."""
    return [a / b for a, b in zip(one["rates"], two["rates"], strict=True)]


def table(header, rows):
    cells = [[str(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(n) for cell, n in zip(row, widths, strict=True)) + " |" for row in cells]
    print("\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]]) + "\n", flush=True)


def measure_own(args, note):
    rows = []
    for seeds in dict.fromkeys((1, args.seeds)):
        programs = {"updates alone, in a scan": [own_worker(args, seeds=seeds, ratio=1, program="updates")]}
        for ratio in args.ratios:
            programs[f"full loop, ratio {ratio}"] = [own_worker(args, seeds=seeds, ratio=ratio)]
        found = in_turns(args, programs)
        alone = found["updates alone, in a scan"]
        for name, own in found.items():
            note("own", own, program=name, script=args.script, env_id=args.env_id, seeds=seeds)
            share = "" if own is alone else spread(over(own, alone))
            ms = spread([1e3 / rate for rate in own["rates"]])
            rows.append([seeds, name, spread(own["rates"], 0), ms, share, own["build_s"], own["memory_mb"]])
    table(["seeds", "program", "seed-updates/s", "ms each", "of the updates alone", "build s", "MB"], rows)


def measure_buffers(args, note):
    for ratio in args.ratios[:2]:
        sizes = {size: [own_worker(args, ratio=ratio, buffer_size=size)] for size in (10_000, 1_000_000)}
        found = in_turns(args, sizes)
        for size, own in found.items():
            what = {"script": args.script, "env_id": args.env_id, "seeds": 1, "replay_ratio": ratio}
            note("buffers", own, program="full loop", buffer_size=size, **what)
        share = spread(over(found[1_000_000], found[10_000]))
        print(f"Speed with a replay of 1,000,000 against 10,000 transitions, ratio {ratio}: {share}", flush=True)
    print()


def measure_bound(args, note, cores):
    names = {"updates alone, in a scan": "updates", "products of as many operations": "products"}
    workers = {name: [own_worker(args, cores[0], ratio=1, program=kind)] for name, kind in names.items()}
    found = in_turns(args, workers)
    for name, own in found.items():
        note("bound", own, program=name, script=args.script, env_id=args.env_id, seeds=1)
    updates, products = found.values()
    rates = [spread(own["rates"], 0) for own in found.values()]
    gflops = spread([rate * products["gflop"] for rate in products["rates"]], 0)
    print(f"One core, one thread: {rates[0]} updates/s, {products['gflop']:.3f} GFLOP each by XLA's count. Plain")
    print(f"products of as many operations: {rates[1]}/s ({gflops} GFLOP/s), {spread(over(products, updates))} times")
    print("as fast: about what a program for the same products could win at most.\n", flush=True)


def measure_pinned(args, note, cores):
    ratio = args.ratios[:2][-1]
    pinned = [own_worker(args, ratio=ratio, core=core) for core in cores[:2]]
    found = in_turns(args, {"all": [own_worker(args, ratio=ratio)], "pinned": pinned})
    for name, own in found.items():
        note("pinned", own, program=name, script=args.script, env_id=args.env_id, seeds=1, replay_ratio=ratio)
    share = spread(over(found["pinned"], found["all"]))
    rates = [spread(found[name]["rates"], 0) for name in ("pinned", "all")]
    print(f"{len(pinned)} pinned single-threaded processes, ratio {ratio}: {rates[0]} seed-updates/s together, {share}")
    print(f"times one process on {len(cores)} cores ({rates[1]})\n", flush=True)


def measure_sbx(args, note, cores):
    print(f"SBX trains {args.sbx_env_id} as Gymnasium makes it, Ratio as EnvPool does: MuJoCo in both.\n")
    rows, shares = [], []
    for ratio in args.ratios[:2]:
        ours = partial(own_worker, args, script="algos/sac.py", env_id=args.sbx_env_id, ratio=ratio)
        programs = {
            "Ratio, one run": [ours()],
            "SBX, one run": [sbx_worker(args, ratio)],
            f"Ratio, {args.seeds} seeds in one program": [ours(seeds=args.seeds)],
            "Ratio, a pinned process per core": [ours(core=core) for core in cores[:2]],
            "SBX, a pinned process per core": [sbx_worker(args, ratio, core, core) for core in cores[:2]],
        }
        found = in_turns(args, programs)
        one, sbx, several, packed, sbx_packed = found.values()
        for name, own in found.items():
            seeds = args.seeds if own is several else own["processes"]
            note("sbx", own, program=name, env_id=args.sbx_env_id, seeds=seeds, replay_ratio=ratio)
            env = own["env_us"] * own["rates"][-1] / own["processes"] / (ratio * (seeds if own is several else 1)) / 1e6
            rows.append([ratio, name, spread(own["rates"], 0), f"{100 * env:.0f} %", own["memory_mb"]])
        shares.append([ratio, "one run", "one run", spread(over(one, sbx))])
        for name, own in ((f"{args.seeds} seeds in one program", several), ("a pinned process per core", packed)):
            shares.append([ratio, name, "one after another", spread(over(own, sbx))])
            shares.append([ratio, name, "a pinned process per core", spread(over(own, sbx_packed))])
        versions = ", ".join(f"{name} {number}" for name, number in sbx["versions"].items())
    table(["ratio", "program", "seed-updates/s", "environment's share", "MB"], rows)
    table(["ratio", "Ratio", "SBX", "times as fast"], shares)
    print(f"SBX's environment: {versions}\n", flush=True)


def measure_minatar(args, note, cores):
    programs = {
        ("dqn", 1, 1, 10_000): {},
        ("dqn", 1, 1, 100_000): {},
        ("dqn", 1, 1, 1_000_000): {},
        ("dqn", 1, 0.25, 100_000): {},
        ("dqn", args.seeds, 1, 100_000): {},
        ("rainbow", 1, 1, 100_000): {},
        ("rainbow", 1, 1, 1_000_000): {},
        ("rainbow, no noise", 1, 1, 100_000): {"noise_scale": 0.0},
    }
    workers = {}
    for (name, seeds, ratio, size), options in programs.items():
        work = {"script": f"algos/{name.split(',')[0]}.py", "seeds": seeds, "ratio": ratio, "buffer_size": size}
        workers[name, seeds, ratio, size] = [program_worker(cores[0], **MINATAR | work | options)]
    found, rows = in_turns(args, workers), []
    for (name, seeds, ratio, size), own in found.items():
        what = {"seeds": seeds, "replay_ratio": ratio, "buffer_size": size, "batch_size": 32}
        note("minatar", own, program=name, **MINATAR | what)
        share = spread(over(own, found[name, 1, 1, 100_000]))
        steps = spread([rate / ratio for rate in own["rates"]], 0)
        rows.append([name, seeds, ratio, f"{size:,}", spread(own["rates"], 0), steps, share, own["memory_mb"]])
    print("Breakout of MinAtar, batch 32, dqn.py's network, one core and thread. Share: of one seed's speed at ratio 1")
    print("with 100,000 transitions.\n")
    table(["script", "seeds", "ratio", "replay", "seed-updates/s", "seed-steps/s", "share", "MB"], rows)


def atari_programs(part, seeds):
    """[(script, seeds, replay)] of a part; the others are compared with the first."""
    if part == "spr":
        return [(name, n, 10_000) for name in ("spr", "sr_spr", "bbf") for n in (1, seeds)]
    sizes = [("dqn_atari", 1, 100_000), ("dqn_atari", 1, 10_000), ("dqn_atari", seeds, 100_000)]
    return sizes + [(name, n, size) for name in ("drq_eps", "der") for n, size in ((1, 100_000), (seeds, 10_000))]


def measure_atari(args, note, cores, part):
    programs, workers = atari_programs(part, args.seeds), {}
    for name, seeds, size in programs:
        work = {"script": f"algos/{name}.py", "seeds": seeds, "buffer_size": size}
        workers[name, seeds, size] = [program_worker(cores[0], **ATARI | work)]
    found, rows = in_turns(args, workers, large=part == "spr"), []
    require(found, "no program could be built; its process says why above")
    first = next(iter(found.values()))
    for (name, seeds, size), own in found.items():
        what = {"env_id": "Breakout-v5", "seeds": seeds, "replay_ratio": 1, "buffer_size": size}
        note(part, own, program=name, **what | {"batch_size": 32, "hidden_dim": 2048 if name == "bbf" else 512})
        share = spread(over(own, first))
        floor = seeds * size * (84 * 84 + 12) / 2**20  # MB of the replay
        cells = [spread(own["rates"], 1), share, f"{own['env_us']:.0f}", own["memory_mb"], f"{floor:.0f}"]
        rows.append([name, seeds, f"{size:,}", *cells])
    print("Breakout of Atari, batch 32, one core and thread, ratio 1. Share: of the first row's speed.\n")
    table(["script", "seeds", "replay", "seed-updates/s", "share", "environment us", "MB", "of it replay"], rows)


def kind_of(path):
    """What is measured of a script on its tasks, by what its text says of them."""
    text = Path(path).read_text()
    if "gymnax" in text:
        return MINATAR
    return ATARI | {"buffer_size": 10_000} if "envpool.atari" in text else {}


def measure_against(args, note, cores):
    """Each script and the one of the same name in another folder, in turns, on one core with one thread."""
    rows = []
    for path in sorted(Path(args.script).parent.glob("*.py")):
        other = Path(args.against, path.name)
        if not other.is_file() or (args.scripts and path.stem not in args.scripts):
            continue
        for seeds in dict.fromkeys((1, args.seeds)):
            for ratio in args.ratios:
                work = {"seeds": seeds, "ratio": ratio} | kind_of(path)
                own = {"batch_size": args.batch_size, "hidden_dim": args.hidden_dim, "env_id": args.env_id}
                work |= own if "env_id" not in work else {}
                workers = {where: [program_worker(cores[0], script=str(where), **work)] for where in (path, other)}
                found = in_turns(args, workers)
                for where in workers:
                    own = {"seeds": seeds, "replay_ratio": ratio, "env_id": work["env_id"], "script": str(where)}
                    note("against", found[where], program="full loop", **own)
                rates = [spread(found[where]["rates"], 0) for where in workers]
                built = [found[where]["build_s"] for where in workers]
                row = [path.stem, seeds, ratio, *rates, spread(over(found[path], found[other])), *built]
                rows.append(row)
                print(*row, file=sys.stderr, flush=True)
    require(rows, f"no script of {args.against} is to be compared")
    print(f"Scripts of {Path(args.script).parent} against those of the same name in {args.against}, in turns.\n")
    columns = ["script", "seeds", "ratio", "seed-updates/s", "there", "times as fast", "build s", "there"]
    table(columns, rows)


def main(args: Args):
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
    cores = sorted(os.sched_getaffinity(0))
    cpu = Path("/proc/cpuinfo").read_text().split("model name\t: ")[-1].split("\n")[0]
    git = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    commit = subprocess.run(git, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    machine = {"date": datetime.date.today().isoformat(), "commit": commit, "cpu": cpu, "cores": len(cores)}
    machine |= {"system": platform.system(), "python": platform.python_version()}
    machine |= {"batch_size": args.batch_size, "hidden_dim": args.hidden_dim}
    lines, file = [], open(args.json, "a") if args.json else None

    def note(part, own, **what):
        rates = [round(rate, 3) for rate in own["rates"]]
        own = {name: value for name, value in own.items() if name != "rates"}
        lines.append(json.dumps({"part": part} | machine | what | {"seed_updates_per_s": rates} | own))
        if file:  # at once: a later part may fail
            print(lines[-1], file=file, flush=True)

    print(f"{cpu}, {len(cores)} cores, commit {commit[:7]}, {machine['date']}.")
    print(f"Median of {args.rounds} turns of {args.seconds:g} s each (least to most).\n", flush=True)
    if args.against:
        measure_against(args, note, cores)
        print("\n".join(lines))
        return
    if {*args.parts} - {"minatar", "atari", "spr"}:
        print(f"Batch {args.batch_size}, two hidden layers of {args.hidden_dim}:\n", flush=True)
    if "own" in args.parts:
        print(f"{args.script} on {args.env_id}:\n", flush=True)
        measure_own(args, note)
    if "buffers" in args.parts:
        measure_buffers(args, note)
    if "bound" in args.parts:
        measure_bound(args, note, cores)
    if "pinned" in args.parts:
        measure_pinned(args, note, cores)
    if "sbx" in args.parts:
        measure_sbx(args, note, cores)
    if "minatar" in args.parts:
        measure_minatar(args, note, cores)
    for part in ("atari", "spr"):
        if part in args.parts:
            measure_atari(args, note, cores, part)
    print("\n".join(lines))


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except OSError as error:  # a file that cannot be opened, a full disk, a closed pipe
        require(False, f"cannot use {error.filename or 'an output'}: {error.strerror or error}")
