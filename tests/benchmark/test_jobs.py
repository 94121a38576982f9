"""What a sweep checks and shares out before it starts anything: ratios, and the memory of GPUs."""

import math

import pytest
from common import load

from benchmark import jobs, sweep
from benchmark.suites import SUITES


def makes(ratio):
    return sweep.make_jobs(sweep.Args(suite="dmc_cpu", replay_ratios=(ratio,), seeds=1, device="cpu", jobs=1), ())


@pytest.mark.parametrize("ratio", [0.3333333333, 1 / 3, 0.1234567, 12.34375, 1_234_567.0])
def test_a_ratio_with_too_many_digits_is_refused(ratio, capsys):
    """As the scripts refuse it, or because folders and tables, which hold six digits, would name another."""
    with pytest.raises(SystemExit) as stop:
        makes(ratio)
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"error: --replay-ratios {ratio!r} has too many digits\n"


@pytest.mark.parametrize("ratio", [0.25, 0.3, 1.0, 1.5, 128.0, 0.0125])
def test_other_ratios_arrive_at_the_script_as_they_were_typed(ratio):
    args = load("sac").Args(replay_ratio=ratio)
    load("sac").check_algorithm(args)
    for job in makes(ratio):
        assert float(job.words[job.words.index("--replay-ratio") + 1]) == job.replay_ratio == ratio
        assert all(f"__rr{ratio:g}__" in folder for folder in job.folders)


@pytest.mark.parametrize("ratio", [0.0, -1.0, 2.0**31, math.nan, math.inf])
def test_a_ratio_that_is_none(ratio, capsys):
    with pytest.raises(SystemExit):
        makes(ratio)
    assert "--replay-ratios must be above 0" in capsys.readouterr().err


def test_the_ratios_of_the_suites_can_be_run():
    for suite in SUITES.values():
        for ratio in suite.replay_ratios:
            jobs.check_ratio(ratio)


NAMES = ("XLA_PYTHON_CLIENT_MEM_FRACTION", "XLA_CLIENT_MEM_FRACTION")
NAMES += ("XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR")


@pytest.fixture
def environments(monkeypatch):
    """(--jobs, number of GPUs, the user's variables) -> the environment that each place of the sweep adds."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def found(number, cards, **given):
        monkeypatch.setattr(sweep, "gpus", lambda: [str(card) for card in range(cards)])
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        return [environment for _, environment in sweep.slots(sweep.Args(suite="dmc15", jobs=number, device="gpu"))]

    return found


def test_jobs_that_share_a_gpu_share_its_memory(environments):
    three = environments(3, 1)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in three] == ["0"] * 3
    shares = [float(own["XLA_PYTHON_CLIENT_MEM_FRACTION"]) for own in three]
    assert len(set(shares)) == 1 and 0.7 < sum(shares) < 0.9


def test_jobs_take_the_gpus_in_turns(environments):
    five = environments(5, 2)
    assert [own["CUDA_VISIBLE_DEVICES"] for own in five] == ["0", "1", "0", "1", "0"]
    assert {own["XLA_PYTHON_CLIENT_MEM_FRACTION"] for own in five} == {"0.266"}, "three on the first of them"


@pytest.mark.parametrize(("number", "cards"), [(0, 2), (2, 2), (1, 2), (0, 1)])
def test_a_gpu_of_ones_own_is_as_jax_has_it(environments, number, cards):
    found = environments(number, cards)
    assert found == [{"CUDA_VISIBLE_DEVICES": str(card)} for card in range(number or cards)]


@pytest.mark.parametrize(
    "given",
    [
        {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.3"},
        {"XLA_CLIENT_MEM_FRACTION": "0.33"},
        {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
        {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform"},
    ],
)
def test_what_the_user_has_set_stays(environments, given):
    assert environments(3, 1, **given) == [{"CUDA_VISIBLE_DEVICES": "0"}] * 3


@pytest.mark.parametrize("name", NAMES[:2])
@pytest.mark.parametrize("value", ["0.75", "much"])
def test_shares_that_do_not_fit_are_refused(environments, name, value, capsys):
    with pytest.raises(SystemExit) as stop:
        environments(3, 1, **{name: value})
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.count("\n") == 1
    assert f"3 jobs on one GPU do not fit with {name}={value} each; unset it, set it to 0.266, or lower --jobs" in said
    assert environments(1, 1, XLA_PYTHON_CLIENT_MEM_FRACTION="0.75") == [{"CUDA_VISIBLE_DEVICES": "0"}]
