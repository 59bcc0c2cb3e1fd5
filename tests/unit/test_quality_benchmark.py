"""The benchmark of quality, on public data where KEEK_TEST_DATA names the folder that holds it."""

import json
import os
import sys
from pathlib import Path

import pytest
from benchmarks import quality, servers


def test_it_prints_and_keeps_one_object_with_its_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not os.environ.get("KEEK_TEST_DATA"):
        pytest.skip("KEEK_TEST_DATA names no folder with the public data sets")
    for module in (quality, servers):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["quality", "--data", "tiktok", "--quick", "--baselines-only"])
    quality.main()
    result = json.loads(capsys.readouterr().out)
    assert (result["data"], result["split"], result["seed"]) == ("tiktok", "given", 1)
    for name in ("popular", "trending", "itemknn", "ials", "ease", "ease_recency", "markov"):
        assert result[name].keys() == set(quality._SHOWN)
    assert result["served_equals_offline"] is None
    assert result["cold_start"]["history_1"]["markov"].keys() == {
        "recall@10",
        "ndcg@10",
        "intervals",
        "whole_history",
    }
    stem = "quality-tiktok-given-baselines-quick"
    assert json.loads((tmp_path / f"{stem}.json").read_text("utf-8")) == result
    assert len(list(tmp_path.glob(f"{stem}-*.png"))) == 5


def test_it_says_that_there_is_no_data(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KEEK_TEST_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["quality", "--data", "tiktok"])
    with pytest.raises(SystemExit):
        quality.main()
    assert "KEEK_TEST_DATA names no folder" in capsys.readouterr().err
