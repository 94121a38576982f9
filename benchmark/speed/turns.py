"""The protocol of a measurement: programs in processes of their own, which work in turns.

A process builds its program, answers with one line of JSON and sleeps; for each line of stdin, a number of seconds, it
works for about so long and answers with its rate.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

from benchmark.jobs import SINGLE_THREAD

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Worker:
    """A measuring process: on one core and with one thread if a core is named. It begins when it is told to."""

    def __init__(self, words, core=None):
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} | os.environ  # several share a GPU's memory
        if core is not None:
            environment |= ONE_THREAD | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {SINGLE_THREAD}".strip()}
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
    """A process that measures one of programs.PROGRAMS."""
    work = {"program": "loop", "seeds": 1, "ratio": 1, "buffer_size": 100_000} | work
    return Worker([sys.executable, "-m", "benchmark.speed.programs", json.dumps(work)], core)


def own_worker(args, core=None, **what):
    own = {"script": args.script, "env_id": args.env_id, "batch_size": args.batch_size, "hidden_dim": args.hidden_dim}
    return program_worker(core, **own | what)


def sbx_worker(args, ratio, seed=1, core=None):
    work = {"env_id": args.sbx_env_id, "ratio": ratio, "seed": seed, "buffer_size": 100_000}
    work |= {"batch_size": args.batch_size, "hidden_dim": args.hidden_dim}
    words = [args.sbx_python, str(Path(__file__).with_name("sbx_program.py")), json.dumps(work)]
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


def over(one, two):
    """Ratio of two programs' rates, turn by turn."""
    return [a / b for a, b in zip(one["rates"], two["rates"], strict=True)]
