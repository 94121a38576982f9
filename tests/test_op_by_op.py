"""The by-hand comparison of compiled and uncompiled runs: what it takes for different."""

import numpy as np
import op_by_op
import pytest


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


@pytest.mark.parametrize("change,code", [(1e-2, 1), (1e-5, 0)])
def test_verdict(monkeypatch, capsys, change, code):
    """Gradients decide, parameters do not."""
    final = lambda script, words, folder, **more: {
        "learner/opt/0/mu": np.array([1.0, 2.0 + 2 * change * bool(more)]),
        "learner/network": np.array([1.0 + bool(more)]),
    }
    monkeypatch.setattr(op_by_op, "final", final)
    assert op_by_op.main("sac") == code
    said = capsys.readouterr().out
    assert ("DIFFER" in said) == bool(code) and "learner/network" in said


def test_no_such_script(capsys):
    assert op_by_op.main("sack") == 2
    assert "sr_sac" in capsys.readouterr().err
