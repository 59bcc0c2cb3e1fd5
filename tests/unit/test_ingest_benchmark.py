"""What the benchmark of uploads makes of its measurements, and which clips it takes."""

from pathlib import Path

import pytest
from benchmarks import ingest


def test_times_are_of_the_whole_way_and_shares_of_all_of_it() -> None:
    times = [(0.5, 0.2)] * 90 + [(1.0, 0.3)] * 10
    result = ingest._result(times, {"decode": 11.0, "store": 2.0, "clip": 33.0, "fresh": 1.0})
    assert result["uploads"] == 100
    assert result["seconds_to_recommendable_p50"] == 0.5
    assert result["seconds_to_recommendable_p99"] == 1.0
    assert result["seconds_acknowledged_p50"] == 0.2
    assert result["seconds_from_acknowledgement_p50"] == 0.3
    assert result["seconds_from_acknowledgement_p99"] == 0.7
    assert (result["share_in_decode"], result["share_in_clip"]) == (0.2, 0.6)
    assert result["seconds_elsewhere_mean"] == 0.11


def test_what_stages_took_is_read_from_the_servers_metrics() -> None:
    text = (
        'keek_video_stage_seconds_count{stage="clip"} 3.0\n'
        'keek_video_stage_seconds_sum{stage="clip"} 1.5\n'
        'keek_video_stage_seconds_sum{stage="decode"} 2.5e-05\n'
    )
    assert ingest._STAGE.findall(text) == [("clip", "1.5"), ("decode", "2.5e-05")]


def test_real_clips_are_taken_where_they_are_and_others_are_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KEEK_TEST_DATA", raising=False)
    assert ingest._real_clips() is None
    monkeypatch.setenv("KEEK_TEST_DATA", str(tmp_path))
    assert ingest._real_clips() is None
    videos = tmp_path / "videos"
    videos.mkdir()
    assert ingest._real_clips() == videos
    for name in ("b.webm", "a.mp4", "readme.txt"):
        (videos / name).touch()
    assert [path.name for path in ingest._clips(tmp_path, videos)] == ["a.mp4", "b.webm"]
    rendered = ingest._clips(tmp_path, None)
    assert len(rendered) == 11
    assert all(path.stat().st_size for path in rendered)
