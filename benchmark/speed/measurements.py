"""What is measured: a function each, which prints a table and notes every program's rates."""

import sys
from functools import partial
from pathlib import Path

import numpy as np

from benchmark.jobs import require
from benchmark.markdown import markdown_table
from benchmark.speed.turns import in_turns, over, own_worker, program_worker, sbx_worker

# dqn.py's network on MinAtar, for all scripts there.
MINATAR = {"env_id": "Breakout-MinAtar", "hidden_dim": 128, "padding": "VALID"}
ATARI = {"env_id": "Breakout-v5", "chunk": 20}  # with the script's own settings; a chunk lasts long enough


def median_and_range(values, digits=2):
    return f"{np.median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def print_table(header, rows):
    print(markdown_table(header, rows, aligned=True) + "\n", flush=True)


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
            share = "" if own is alone else median_and_range(over(own, alone))
            ms = median_and_range([1e3 / rate for rate in own["rates"]])
            rows.append([seeds, name, median_and_range(own["rates"], 0), ms, share, own["build_s"], own["memory_mb"]])
    print_table(["seeds", "program", "seed-updates/s", "ms each", "of the updates alone", "build s", "MB"], rows)


def measure_buffers(args, note):
    for ratio in args.ratios[:2]:
        sizes = {size: [own_worker(args, ratio=ratio, buffer_size=size)] for size in (10_000, 1_000_000)}
        found = in_turns(args, sizes)
        for size, own in found.items():
            what = {"script": args.script, "env_id": args.env_id, "seeds": 1, "replay_ratio": ratio}
            note("buffers", own, program="full loop", buffer_size=size, **what)
        share = median_and_range(over(found[1_000_000], found[10_000]))
        print(f"Speed with a replay of 1,000,000 against 10,000 transitions, ratio {ratio}: {share}", flush=True)
    print()


def measure_bound(args, note, cores):
    names = {"updates alone, in a scan": "updates", "products of as many operations": "products"}
    workers = {name: [own_worker(args, cores[0], ratio=1, program=kind)] for name, kind in names.items()}
    found = in_turns(args, workers)
    for name, own in found.items():
        note("bound", own, program=name, script=args.script, env_id=args.env_id, seeds=1)
    updates, products = found.values()
    rates = [median_and_range(own["rates"], 0) for own in found.values()]
    gflops = median_and_range([rate * products["gflop"] for rate in products["rates"]], 0)
    print(f"One core, one thread: {rates[0]} updates/s, {products['gflop']:.3f} GFLOP each by XLA's count. Plain")
    times = median_and_range(over(products, updates))
    print(f"products of as many operations: {rates[1]}/s ({gflops} GFLOP/s), {times} times")
    print("as fast: about what a program for the same products could win at most.\n", flush=True)


def measure_pinned(args, note, cores):
    ratio = args.ratios[:2][-1]
    pinned = [own_worker(args, ratio=ratio, core=core) for core in cores[:2]]
    found = in_turns(args, {"all": [own_worker(args, ratio=ratio)], "pinned": pinned})
    for name, own in found.items():
        note("pinned", own, program=name, script=args.script, env_id=args.env_id, seeds=1, replay_ratio=ratio)
    share = median_and_range(over(found["pinned"], found["all"]))
    rates = [median_and_range(found[name]["rates"], 0) for name in ("pinned", "all")]
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
            rows.append([ratio, name, median_and_range(own["rates"], 0), f"{100 * env:.0f} %", own["memory_mb"]])
        shares.append([ratio, "one run", "one run", median_and_range(over(one, sbx))])
        for name, own in ((f"{args.seeds} seeds in one program", several), ("a pinned process per core", packed)):
            shares.append([ratio, name, "one after another", median_and_range(over(own, sbx))])
            shares.append([ratio, name, "a pinned process per core", median_and_range(over(own, sbx_packed))])
        versions = ", ".join(f"{name} {number}" for name, number in sbx["versions"].items())
    print_table(["ratio", "program", "seed-updates/s", "environment's share", "MB"], rows)
    print_table(["ratio", "Ratio", "SBX", "times as fast"], shares)
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
        share = median_and_range(over(own, found[name, 1, 1, 100_000]))
        steps = median_and_range([rate / ratio for rate in own["rates"]], 0)
        rows.append(
            [name, seeds, ratio, f"{size:,}", median_and_range(own["rates"], 0), steps, share, own["memory_mb"]]
        )
    print("Breakout of MinAtar, batch 32, dqn.py's network, one core and thread. Share: of one seed's speed at ratio 1")
    print("with 100,000 transitions.\n")
    print_table(["script", "seeds", "ratio", "replay", "seed-updates/s", "seed-steps/s", "share", "MB"], rows)


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
        share = median_and_range(over(own, first))
        floor = seeds * size * (84 * 84 + 12) / 2**20  # MB of the replay
        cells = [median_and_range(own["rates"], 1), share, f"{own['env_us']:.0f}", own["memory_mb"], f"{floor:.0f}"]
        rows.append([name, seeds, f"{size:,}", *cells])
    print("Breakout of Atari, batch 32, one core and thread, ratio 1. Share: of the first row's speed.\n")
    print_table(["script", "seeds", "replay", "seed-updates/s", "share", "environment us", "MB", "of it replay"], rows)


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
                rates = [median_and_range(found[where]["rates"], 0) for where in workers]
                built = [found[where]["build_s"] for where in workers]
                row = [path.stem, seeds, ratio, *rates, median_and_range(over(found[path], found[other])), *built]
                rows.append(row)
                print(*row, file=sys.stderr, flush=True)
    require(rows, f"no script of {args.against} is to be compared")
    print(f"Scripts of {Path(args.script).parent} against those of the same name in {args.against}, in turns.\n")
    columns = ["script", "seeds", "ratio", "seed-updates/s", "there", "times as fast", "build s", "there"]
    print_table(columns, rows)
