"""What people read: who refused a release, by how much; nothing in it can run or load anything."""

import logging
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from keek_server.errors import SetupError
from keek_server.releases.manifest import GateResult
from keek_training.gates.evidence import Evidence
from keek_training.gates.report import write_report
from keek_training.gates.results import at_least, at_most, failed, not_measurable
from keek_training.gates.verdict import RefusedError, refuse_unless_passed

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x.png>\x1b[2J$x^$&amp;"
PASSED = at_most("parity", 2e-6, 1e-4, "user_tower: largest difference")
SLOW = at_most("latency", 50.0, 5.0, f"video_tower: {HOSTILE}")
WORSE = at_least("quality", 0.31, 0.7, "recall@100 of 412 held-out videos")
MISSING = not_measurable(at_least("overlap", 0, 0.0, ""), "there is no live release yet")
BROKEN = failed(at_most("format", 0, 0, ""), "user_tower: it is no ONNX model")
ALL = [PASSED, SLOW, WORSE, MISSING, BROKEN]


class Page(HTMLParser):
    """Collects what a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def evidence() -> Evidence:
    rng = np.random.default_rng(0)
    return Evidence(
        video_norms=np.append(np.ones(100, np.float32), np.nan),
        user_norms=rng.normal(1, 0.1, 50),
        overlaps=rng.random(50),
        ranks=rng.integers(0, 1000, 50).astype(np.float64),
        live_ranks=rng.integers(0, 1000, 50).astype(np.float64),
        latencies_ms={"user_tower": rng.random(20), "user_tower, live": rng.random(20)},
    )


def test_a_refusal_names_each_gate_its_value_and_what_is_asked_for() -> None:
    with pytest.raises(RefusedError) as caught:
        refuse_unless_passed(ALL)
    assert isinstance(caught.value, SetupError)
    assert caught.value.results == tuple(ALL)
    message = str(caught.value)
    assert (
        "refused by gate quality: value 0.31, at least 0.70 is asked for: recall@100 of 412 held-out videos"
        in message
    )
    assert "refused by gate latency: value 50, at most 5 is asked for" in message
    assert "refused by gate format: not measured, at most 0 is asked for" in message
    assert "parity" not in message
    assert "overlap" not in message
    assert message.isprintable()


def test_what_passes_goes_on_and_what_is_forced_does_with_its_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    refuse_unless_passed([PASSED, MISSING])
    with caplog.at_level(logging.WARNING):
        refuse_unless_passed([PASSED, WORSE], "the old one was trained on test data")
    assert "the old one was trained on test data" in caplog.text
    assert "gate quality" in caplog.text
    with pytest.raises(RefusedError):
        refuse_unless_passed([WORSE], "  ")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_never_passes(value: float) -> None:
    for result in (at_most("x", value, 1e9, "a"), at_least("x", value, 0, "a")):
        assert not result.passed
        assert result.value is None
        assert GateResult.model_validate_json(result.model_dump_json()) == result


@pytest.mark.parametrize("forced", ["", "we know & accept <that>"])
def test_the_page_holds_everything_and_asks_for_nothing(tmp_path: Path, forced: str) -> None:
    page = write_report(tmp_path, "r7", f"run {HOSTILE}", ALL, "r6", forced, evidence())
    content = page.read_text("utf-8")
    parsed = Page()
    parsed.feed(content)
    assert "script" not in parsed.tags
    assert not re.search(r"<(script|iframe|link|object)", content)
    assert len(parsed.sources) == parsed.tags.count("img") == 5
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in parsed.sources)
    assert "alert(1)" in parsed.text
    verdict = "refused by latency, quality, format"
    assert (f"published by force although {verdict}" if forced else verdict) in parsed.text
    assert forced in parsed.text
    for result in ALL:
        assert result.name in parsed.text
    assert "at least" not in parsed.text
    assert ">= 0.70" in parsed.text


def test_the_text_has_one_line_a_gate(tmp_path: Path) -> None:
    write_report(tmp_path, "r7", "a run", ALL, None)
    lines = (tmp_path / "report.txt").read_text("utf-8").splitlines()
    assert lines[0] == "release r7: refused by latency, quality, format"
    assert "  compared with: nothing: no live release" in lines
    assert [line.split()[0] for line in lines[-5:]] == ["passed", "REFUSED", "REFUSED", "skipped", "REFUSED"]


def test_a_report_of_a_file_that_is_nothing_is_written_too(tmp_path: Path) -> None:
    assert "it is no ONNX model" in write_report(tmp_path, "r8", "x", [BROKEN], None).read_text("utf-8")
    assert "passed all 1 gates" in write_report(tmp_path, "r8", "x", [PASSED], None).read_text("utf-8")
