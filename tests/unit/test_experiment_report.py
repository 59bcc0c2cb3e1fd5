"""All that is concluded from an experiment: as JSON, as a table, as a page."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from keek_server.clock import us_iso
from keek_server.errors import InvalidArgumentError
from keek_server.experiments.charts import Span, forest, ribbon
from keek_server.experiments.guardrails import FeedHealth
from keek_server.experiments.logs import Exposures, Interactions
from keek_server.experiments.measures import MEASURES
from keek_server.experiments.report import Question, ReportArm, build_report
from keek_server.experiments.report_page import report_page
from keek_server.experiments.report_text import report_text
from keek_server.interactions.kinds import InteractionKind

HOUR_US = 3600 * 1_000_000
START_US, END_US = 100 * HOUR_US, 200 * HOUR_US
ARMS = (ReportArm("control", 1.0), ReportArm("half <b>", 1.0))
QUESTION = Question("mix", ARMS, START_US, END_US, window_us=HOUR_US)


def world(
    lift: float, users: int = 3_000, seed: int = 1, arm_count: int = 2
) -> tuple[Exposures, Interactions, FeedHealth]:
    """Two feeds of five videos before, three in the experiment; rates differ by user, and in later arms."""
    rng = np.random.default_rng(seed)
    arms, taste = rng.integers(arm_count, size=users), rng.beta(2.0, 8.0, users)
    who = np.repeat(np.arange(users), 5)
    is_before = np.tile([True, True, False, False, False], users)
    times = np.where(
        is_before, rng.integers(0, START_US, 5 * users), rng.integers(START_US, END_US, 5 * users)
    )
    n, m = 5 * users, 25 * users
    exposures = Exposures(
        users=who,
        arms=np.where(is_before, -1, arms[who]).astype(np.int16),
        times_us=times,
        offsets=np.arange(0, m + 1, 5),
        firsts=np.zeros(n, np.int64),
        videos=np.arange(m),
        sources=np.ones(m, np.int8),
        scores=np.zeros(m, np.float32),
        source_propensities=np.full(m, np.nan, np.float32),
        video_propensities=np.full(m, np.nan, np.float32),
    )
    feeds = exposures.feeds
    rates = taste[who] * np.where(is_before, 1.0, 1.0 + lift * (arms[who] > 0))
    liked = np.flatnonzero(rng.random(m) < rates[feeds])
    kinds = np.where(rng.random(len(liked)) < 0.5, InteractionKind.LIKE, InteractionKind.VIEW)
    interactions = Interactions(
        who[feeds[liked]],
        liked,
        kinds.astype(np.int8),
        times[feeds[liked]] + 1,
        np.full(len(liked), np.nan),
        np.full(len(liked), np.nan),
    )
    taking_part = ~is_before
    count = int(taking_part.sum())
    health = FeedHealth(
        who[taking_part],
        arms[who[taking_part]].astype(np.int16),
        rng.lognormal(1.0, 0.3, count).astype(np.float32),
        np.full(count, 5),
        np.full(count, 5),
        np.zeros(count, np.bool_),
    )
    return exposures, interactions, health


def difference(report: dict[str, Any], name: str, arm: int = 1) -> dict[str, Any]:
    (measure,) = (own for own in report["measures"] if own["name"] == name)
    own: dict[str, Any] = measure["arms"][arm]["difference"]
    return own


def test_a_lift_is_found_by_every_measure_that_it_moves() -> None:
    report = build_report(QUESTION, *world(0.3))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [own["name"] for own in report["measures"]] == [own.name for own in MEASURES]
    for name in ("north_star", "likes", "views", "like_rate"):
        own = difference(report, name)
        assert own["is_significant"]
        assert own["sequential_relative_low"] < own["relative_low"] < 0.3 < own["relative_high"]
        assert 0.0 < own["p_value"] < own["sequential_p_value"] < 0.05
    # Everyone has three feeds.
    assert difference(report, "feeds")["relative"] == pytest.approx(0.0, abs=1e-12)
    assert not difference(report, "feeds")["is_significant"]
    # Nobody saves: a lift over nothing is not known.
    assert difference(report, "saves")["relative"] is None
    for arm in report["arms"]:
        assert arm["feed_count"] == 3 * arm["user_count"]
        assert arm["slot_count"] == 15 * arm["user_count"]
    assert not report["sample_ratio"]["is_broken"]
    (row,) = (own["arms"][1] for own in report["measures"] if own["name"] == "likes")
    assert 0.1 < row["variance_reduction"] < 0.9


def test_the_share_watched_shows_as_json_text_and_page_and_is_unknown_without_seconds() -> None:
    exposures, interactions, health = world(0.0)
    report = build_report(QUESTION, exposures, interactions, health)
    for name in ("watch_share", "watch_seconds"):
        (measure,) = (own for own in report["measures"] if own["name"] == name)
        assert [row["value"] for row in measure["arms"]] == [None, None]
        assert difference(report, name)["p_value"] is None
        assert not difference(report, name)["is_significant"]
    assert "watch_share" in report_text(report)
    assert report_page(report)
    # A view is watched longer in the second arm, and by users who watch longer before.
    rng = np.random.default_rng(4)
    arm_of = np.zeros(3_000, np.int16)
    arm_of[exposures.users[exposures.arms >= 0]] = exposures.arms[exposures.arms >= 0]
    patience = rng.uniform(0.2, 0.6, 3_000)[interactions.users]
    share = patience * np.where(
        (interactions.times_us > START_US) & (arm_of[interactions.users] == 1), 1.25, 1.0
    )
    durations = rng.uniform(5.0, 60.0, len(interactions))
    seconds = np.where(interactions.kinds == InteractionKind.VIEW, durations * share, np.nan)
    timed = replace(interactions, watched_s=seconds, durations_s=durations)
    report = build_report(QUESTION, exposures, timed, health)
    own = difference(report, "watch_share")
    assert own["is_significant"]
    assert own["relative_low"] < 0.25 < own["relative_high"]
    (measure,) = (own for own in report["measures"] if own["name"] == "watch_share")
    assert measure["arms"][0]["value"] == pytest.approx(0.4, abs=0.02)
    assert measure["arms"][1]["variance_reduction"] > 0.1
    assert difference(report, "watch_seconds")["relative"] > 0.1
    assert "share watched of videos viewed or skipped" in report_page(report)


def test_without_an_effect_nothing_is_found() -> None:
    report = build_report(QUESTION, *world(0.0))
    assert not any(difference(report, own.name)["is_significant"] for own in MEASURES)
    assert report["guardrails"][0]["verdict"] != "stop"


def test_the_time_line_narrows_to_the_lift_of_the_end() -> None:
    report = build_report(QUESTION, *world(0.3))
    line = report["time_line"]
    assert [own["arm"] for own in line] == ["half <b>"] * 10
    widths = [own["relative_high"] - own["relative_low"] for own in line]
    assert widths[-1] < 0.6 * widths[0]
    end = difference(report, "north_star")
    assert (line[-1]["relative"], line[-1]["relative_low"]) == (
        end["relative"],
        end["sequential_relative_low"],
    )


def test_an_arm_that_was_stopped_is_compared_over_the_time_before() -> None:
    exposures, interactions, health = world(0.0, arm_count=3)
    half_us = (START_US + END_US) // 2
    kept = (exposures.arms != 2) | (exposures.times_us < half_us)
    arms = (*ARMS, ReportArm("bad", 1.0, stop_us=half_us))
    report = build_report(replace(QUESTION, arms=arms), exposures.only(kept), interactions, health)
    # It has half the feeds of the others, and no more and no fewer by user than the control had until then.
    assert report["arms"][2]["feed_count"] < 0.6 * report["arms"][1]["feed_count"]
    assert abs(difference(report, "feeds", 2)["relative"]) < 0.05
    assert difference(report, "feeds", 2)["p_value"] > 0.01
    assert not report["sample_ratio"]["is_broken"]
    assert {own["arm"] for own in report["time_line"]} == {"half <b>", "bad"}
    assert max(own["time"] for own in report["time_line"] if own["arm"] == "bad") <= us_iso(half_us)
    assert "bad (stopped)" in report_text(report)


def test_lost_users_are_the_first_thing_that_is_said() -> None:
    exposures, interactions, health = world(0.0, users=6_000)
    lost = (exposures.arms == 1) & (exposures.users % 5 == 0)
    report = build_report(QUESTION, exposures.only(~lost), interactions, health)
    assert report["sample_ratio"]["is_broken"]
    assert "THE SAMPLE RATIO IS BROKEN" in report_text(report).splitlines()[1]
    assert '<p class="failed"><b>THE SAMPLE RATIO IS BROKEN' in report_page(report)


def test_users_that_were_lost_since_the_weights_changed_are_noticed_though_an_arm_had_stopped_before() -> (
    None
):
    exposures, interactions, health = world(0.0, users=9_000, arm_count=3)
    stop_us, since_us = START_US + (END_US - START_US) // 4, START_US + (END_US - START_US) // 3
    gone = (exposures.arms == 2) & (exposures.times_us >= stop_us)
    lost = (exposures.arms == 1) & (exposures.users % 2 == 0)
    question = replace(QUESTION, arms=(*ARMS, ReportArm("bad", 1.0, stop_us=stop_us)), since_us=since_us)
    whole = build_report(question, exposures.only(~gone), interactions, health)
    assert not whole["sample_ratio"]["is_broken"]
    assert whole["sample_ratio"]["p_value"] is not None
    assert [arm["expected_user_count"] > 0 for arm in whole["arms"]] == [True, True, False]
    report = build_report(question, exposures.only(~gone & ~lost), interactions, health)
    assert report["sample_ratio"]["is_broken"]


def test_before_the_first_feed_there_is_a_report_that_says_nothing() -> None:
    exposures, interactions, _ = world(0.0, users=0)
    report = build_report(QUESTION, exposures, interactions)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [arm["user_count"] for arm in report["arms"]] == [0, 0]
    assert difference(report, "likes")["p_value"] is None
    assert "Nothing can be said of half &lt;b&gt; yet." in report_page(report)
    assert "likes" in report_text(report)


def test_the_table_has_a_row_for_each_measure_of_each_arm() -> None:
    report = build_report(QUESTION, *world(0.3))
    lines = report_text(report).splitlines()
    assert lines[0].startswith("experiment mix: 1970-01-05T04:00:00")
    (row,) = (line for line in lines if line.startswith("north_star") and "half <b>" in line)
    own = difference(report, "north_star")
    assert f"{own['relative']:+.2%} *" in row
    assert f"{own['sequential_relative_low']:+.2%}" in row
    assert sum(line.startswith(("like_rate", "feeds")) for line in lines) == 4
    assert any(line.startswith("guardrails of half <b>: ") for line in lines)


class Tags(HTMLParser):
    """Sees to it that what is opened is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_loads_nothing_and_escapes_what_others_named() -> None:
    html = report_page(build_report(QUESTION, *world(0.3)))
    tags = Tags()
    tags.feed(html)
    assert tags.open == []
    assert tags.seen.count("svg") == 2
    assert "half &lt;b&gt;" in html
    assert "half <b>" not in html
    assert "default-src 'none'" in html
    assert re.search(r"(src|href|url)\s*[=(]", html.replace("img-src data:", "")) is None


def test_plots_put_a_value_where_it_belongs() -> None:
    svg = forest("lifts", [Span("up", 0.1, 0.05, 0.15), Span("down", -0.1, -0.15, -0.05)])
    (up, down) = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', svg))
    (zero,) = (float(x) for x in re.findall(r'<line x1="([\d.]+)"[^>]+dasharray', svg))
    assert down < zero < up
    assert up - zero == pytest.approx(zero - down, abs=0.2)
    assert svg.count("#2a7f4f") == 2
    assert svg.count("#c0392b") == 2
    rising = ribbon("line", [Span("a", 0.0, -0.1, 0.1), Span("b", 0.2, 0.1, 0.3)])
    (points,) = re.findall(r'<polyline points="([^"]+)"', rising)
    (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points.split())
    assert x1 < x2
    assert y1 > y2
    assert "<svg" in ribbon("one", [Span("only", 0.0, 0.0, 0.0)])


def test_axes_are_marked_at_round_values_and_at_zero() -> None:
    svg = forest("lifts", [Span("up", 0.337, 0.18, 0.484), Span("none", 0.0, -0.011, 0.012)])
    assert re.findall(r">([^<>]+ %)<", svg) == ["0 %", "+10 %", "+20 %", "+30 %", "+40 %", "+50 %"]


def test_what_does_not_fit_is_refused() -> None:
    data = world(0.0, users=20)
    with pytest.raises(InvalidArgumentError, match="arms: must be two at least"):
        build_report(replace(QUESTION, arms=ARMS[:1]), *data)
    with pytest.raises(InvalidArgumentError, match="name arms that are not given"):
        build_report(QUESTION, replace(data[0], arms=np.full(100, 5, np.int16)), *data[1:])
