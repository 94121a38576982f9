"""benchmark.speed measures end to end, says what it found where, and ends clearly where it cannot measure."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
from common import ROOT

from benchmark.speed import measurements, turns
from benchmark.speed.__main__ import Args

TINY = "--ratios 2 --seeds 1 --batch-size 8 --hidden-dim 4 --rounds 2 --seconds 0.05 --env-id CartpoleSwingup-v1"
# A measuring process that finds the rates it is given, one per turn, whatever the machine does.
FAKE = """
import json, sys
print("a library's chatter")
print(json.dumps({"build_s": 1.5, "env_us": 1000, "versions": {"fake": "1"}}), flush=True)
for line, rate in zip(sys.stdin, json.loads(sys.argv[1])):
    print(json.dumps({"rate": rate, "memory_mb": 100}), flush=True)
"""


def run(*words, expect=0):
    words = [sys.executable, "-m", "benchmark.speed", *words]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=900, env=os.environ)
    assert done.returncode == expect, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout, done.stderr


@pytest.mark.slow
def test_end_to_end(tmp_path):
    """The loop, its updates alone, and pinned processes: a table, and one JSON line per measurement."""
    out, _ = run("--parts", "own", "bound", "pinned", *TINY.split(), "--json", str(tmp_path / "speed.jsonl"))
    assert "| full loop, ratio 2 " in out and "pinned single-threaded" in out
    lines = [line for line in out.splitlines() if line.startswith("{")]
    assert (tmp_path / "speed.jsonl").read_text().splitlines() == lines
    rows = [json.loads(line) for line in lines]
    alone, products = "updates alone, in a scan", "products of as many operations"
    names = [alone, "full loop, ratio 2", alone, products, "all", "pinned"]
    assert [row["program"] for row in rows] == names
    assert [row["part"] for row in rows] == ["own"] * 2 + ["bound"] * 2 + ["pinned"] * 2
    # An update with networks of 2 + 2 layers of width 4 has some thousand operations more than its inputs.
    assert 1e-6 < rows[3]["gflop"] < 1e-3 and rows[2]["gflop"] is None
    for row in rows:
        assert len(row["seed_updates_per_s"]) == 2 and min(row["seed_updates_per_s"]) > 0
        assert row["env_us"] > 0 and row["memory_mb"] > 0 and row["env_id"] == "CartpoleSwingup-v1"
        assert row["cpu"] and row["cores"] and row["date"] and "commit" in row and row["versions"]["jax"]
    assert rows[-1]["processes"] == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--sbx-python", "/nowhere/python"],
            "no SBX at /nowhere/python: `make speed` installs it; without it: --parts",
        ),
        (["--parts", "own", "gpu"], "--parts takes own, buffers, bound, pinned, sbx, minatar, atari, spr, not gpu"),
        (["--parts", "own", "--rounds", "0"], "must be positive"),
        (["--parts", "own", "--ratios", "1", "0"], "must be positive"),
        (["--parts", "own", "--json", "/proc/nowhere"], "cannot use /proc/nowhere: "),
    ],
)
def test_errors(words, message, tmp_path):
    out, err = run("--json", str(tmp_path / "speed.jsonl"), *words, expect=2)
    assert err.startswith("error: ") and len(err.splitlines()) == 1 and message in err
    assert not out and not (tmp_path / "speed.jsonl").exists()


def fake(*rates):
    return turns.Worker([sys.executable, "-c", FAKE, json.dumps(rates)])


def test_ratios_are_taken_within_a_turn(monkeypatch, capsys):
    """Against SBX, with processes whose rates are known: what stands in the tables follows from these."""
    own = lambda args, core=None, seeds=1, **_: fake(150, 90) if core is not None else fake(*[100 * seeds, 200 * seeds])
    monkeypatch.setattr(measurements, "own_worker", own)
    monkeypatch.setattr(measurements, "sbx_worker", lambda args, ratio, seed=1, core=None: fake(50, 80))
    noted = []
    args = Args(rounds=2, ratios=(4,), seeds=3)
    measurements.measure_sbx(args, lambda part, own, **what: noted.append(what | own), [0, 1])
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line
    ]
    assert ["4", "one run", "one run", "2.25 (2.00 to 2.50)"] in rows  # 100 / 50 and 200 / 80
    assert ["4", "3 seeds in one program", "one after another", "6.75 (6.00 to 7.50)"] in rows
    assert ["4", "a pinned process per core", "one after another", "4.12 (2.25 to 6.00)"] in rows  # 300 / 50, 180 / 80
    assert ["4", "a pinned process per core", "a pinned process per core", "2.06 (1.12 to 3.00)"] in rows
    shares = {row[1]: row[3] for row in rows if len(row) == 5}
    assert shares["SBX, one run"] == "2 %", "a step of 4 updates at 80 a second takes 50 ms, of which the environment 1"
    assert shares["Ratio, 3 seeds in one program"] == "5 %", (
        "one step of all 3 seeds, 12 updates, at 600 a second: 20 ms"
    )
    assert [(row["program"].split(",")[0], row["processes"], row["rates"]) for row in noted] == [
        ("Ratio", 1, [100, 200]), ("SBX", 1, [50, 80]), ("Ratio", 1, [300, 600]), ("Ratio", 2, [300, 180]),
        ("SBX", 2, [100, 160]),
    ]  # fmt: skip


def test_a_measuring_process_that_dies(capfd):
    workers = [fake(1, 2), turns.Worker([sys.executable, "-c", "raise ValueError('no')"])]
    with pytest.raises(SystemExit, match="error: a measuring process ended with code 1"):
        turns.in_turns(Args(), {"one": workers[:1], "two": workers[1:]})
    assert all(worker.process.poll() is not None for worker in workers)
    assert "ValueError: no" in capfd.readouterr().err


def test_what_has_no_room_is_left_out(capfd):
    """Of large programs, which are begun one after another: the others are measured, and it is named."""
    dying = turns.Worker([sys.executable, "-c", "raise MemoryError('no room')"])
    events, programs = [], {"one": fake(1, 2), "two": dying, "three": fake(3, 4)}

    def watched(name, what, call):
        events.append((what, name))
        return call()

    for name, worker in programs.items():
        worker.begin = partial(watched, name, "begin", worker.begin)
        worker.answer = partial(watched, name, "answer", worker.answer)
    found = turns.in_turns(Args(rounds=2), {name: [worker] for name, worker in programs.items()}, large=True)
    assert {name: own["rates"] for name, own in found.items()} == {"one": [1, 2], "three": [3, 4]}
    assert events[:6] == [(what, name) for name in programs for what in ("begin", "answer")]
    said = capfd.readouterr().err
    assert "left out: two; error: a measuring process ended with code 1" in said and "MemoryError: no room" in said
