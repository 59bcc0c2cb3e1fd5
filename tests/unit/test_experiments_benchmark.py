"""The benchmark of experiments, on few users."""

import json
import sys
from pathlib import Path

import pytest
from benchmarks import experiments


def test_it_says_all_that_is_asked_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    sizes = {
        "--runs": 40,
        "--users": 400,
        "--power-runs": 5,
        "--power-users": 2_000,
        "--replays": 2,
        "--replay-users": 400,
    }
    words = [str(word) for pair in sizes.items() for word in pair]
    monkeypatch.setattr(sys, "argv", ["experiments", *words])
    experiments.main()
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((tmp_path / "benchmarks/results/experiments.json").read_text("utf-8"))
    assert found["aa_false_positive_rate"] <= 0.25
    assert found["aa_peeking_false_positive_rate"] <= 0.25
    assert found["aa_peeking"]["come_once"] >= found["aa_peeking"]["come_tau_0.05"]
    assert 0.3 < found["cuped_variance_reduction"] < 0.8
    assert found["srm_detected"] is True
    assert found["ope_relative_error"] < 0.5
    assert found["ope_release_relative_error"] < 0.5
    assert found["ope_release_support"] > 0.8
    assert {"power_at_2_percent", "ope_relative_error_dr", "assign_us"} <= found.keys()
