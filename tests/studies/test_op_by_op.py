"""The by-hand comparison of compiled and uncompiled runs: what it takes for different."""

import numpy as np
import pytest
from common import flags

from studies import op_by_op


def test_compare():
    made = lambda mu, step, frame: {
        "a/mu": np.array([1.0, mu]),
        "b": np.zeros(2),
        "step": np.array(step),
        "frame": frame,
    }
    one, two = made(-4.0, 3, np.zeros(2, np.uint8)), made(-4.1, 4, np.ones(2, np.uint8))
    assert op_by_op.compare(one, two) == {"a/mu": pytest.approx(0.1 / 4.1), "b": 0.0}
    with pytest.raises(AssertionError):
        op_by_op.compare(one, {"a/mu": two["a/mu"]})


def test_gradients_of_a_flat_optimizer_by_layers():
    """One layer's gradients may be small beside another's, and wrong."""
    made = lambda small: {
        "learner/opt/0/mu": np.array([1000.0, 2000.0, small, 0.0]),
        "learner/network/a": np.zeros((2, 1)),
        "learner/network/b": np.zeros(2),
    }
    found = op_by_op.compare(op_by_op.split(made(0.1)), op_by_op.split(made(0.2)))
    assert found["learner/opt/0/mu/network/a"] == 0 and found["learner/opt/0/mu/network/b"] == pytest.approx(0.5)


@pytest.mark.parametrize("change,code", [(1e-2, 1), (1e-5, 0), (np.nan, 1)])
def test_verdict(monkeypatch, capsys, change, code):
    """Gradients decide, parameters do not."""
    final = lambda script, words, folder, **more: {
        "learner/opt/0/mu/a": np.array([1.0, 2.0]),
        "learner/opt/0/mu/b": np.array([1.0, 2.0 + 2 * change * bool(more)]),
        "learner/network": np.array([1.0 + bool(more)]),
    }
    monkeypatch.setattr(op_by_op, "final", final)
    assert op_by_op.main("sac") == code
    said = capsys.readouterr().out
    assert ("DIFFER" in said) == bool(code) and "learner/network" in said


def test_nothing_to_compare(monkeypatch, capsys):
    """Two runs without an update are alike, and say nothing."""
    monkeypatch.setattr(
        op_by_op, "final", lambda *_, **__: {"learner/opt/0/mu": np.zeros(2), "learner/network": np.ones(2)}
    )
    assert op_by_op.main("sac") == 2
    assert "no update" in capsys.readouterr().err


def test_no_such_script(capsys):
    assert op_by_op.main("sack") == 2
    assert "sr_sac" in capsys.readouterr().err


@pytest.mark.slow
def test_a_script_against_itself(capfd):
    """Both runs take place, end with an update, and agree."""
    small = {"batch_size": 2, "hidden_dim": 2, "buffer_size": 12}
    small |= dict.fromkeys(("total_timesteps", "learning_starts", "log_interval"), 6)
    assert op_by_op.main("dqn", "--env-id", "CartPole-v1", *flags(**small)) == 0
    said = capfd.readouterr().out
    assert said.count("6 steps done") == 2 and "gradients are alike" in said
    with pytest.raises(SystemExit, match="2"):
        op_by_op.main("dqn", "--env-id", "CartPole-v2")
    assert "exit code 2" in capfd.readouterr().err
