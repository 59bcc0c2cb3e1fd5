"""Assignment: sticky, as the weights say, no two experiments of a layer at once, layers apart."""

from collections import Counter, defaultdict
from typing import Any

import pytest

from keek_server.errors import InvalidArgumentError
from keek_server.experiments.assignment import (
    BUCKETS,
    NO_ARMS,
    Assignment,
    Plan,
    Running,
    assign,
    free_buckets,
)
from keek_server.experiments.definitions import ExperimentDefinition
from keek_server.feed.parameters import FeedParameters

USERS = [f"user-{number}" for number in range(20_000)]
WHOLE = ((0, BUCKETS),)


def definition(experiment_id: str = "mix", **changes: Any) -> ExperimentDefinition:
    arms = [{"name": "control"}, {"name": "half", "parameters": {"personalised_share": 0.5}}]
    return ExperimentDefinition.of(
        {"experiment_id": experiment_id, "traffic_percent": 100.0, "arms": arms} | changes
    )


def plan(*running: Running, holdout: float = 0.0) -> Plan:
    return Plan.of(running, holdout=holdout)


def counted(own: Plan) -> Counter[str]:
    return Counter(assign(own, user).label for user in USERS)


def test_everyone_has_an_arm_keeps_it_and_the_arms_are_as_large_as_their_weights() -> None:
    arms = [{"name": "a", "weight": 1.0}, {"name": "b", "weight": 3.0}, {"name": "never", "weight": 0.0}]
    found = counted(plan(Running(definition(arms=arms), WHOLE)))
    assert found == counted(plan(Running(definition(arms=arms), WHOLE)))
    # 5,000 expected, with a standard deviation of 61.
    assert found.keys() == {"mix/a", "mix/b"}
    assert 4_750 < found["mix/a"] < 5_250


def test_a_user_whose_arm_grows_keeps_it() -> None:
    before = plan(Running(definition(), WHOLE))
    after = plan(Running(definition().with_weights({"control": 1.2}), WHOLE))
    moved = Counter((assign(before, user).label, assign(after, user).label) for user in USERS)
    assert not moved["mix/control", "mix/half"]
    assert moved["mix/half", "mix/control"] > 0


def test_experiments_of_one_layer_share_users_out_and_those_of_another_draw_anew() -> None:
    cap = [{"name": "control"}, {"name": "one", "parameters": {"per_owner_cap": 1}}]
    own = plan(
        Running(definition("first"), ((0, 300),)),
        Running(definition("second"), ((300, 500),)),
        Running(definition("third", layer="owners", arms=cap), WHOLE),
    )
    arms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for user in USERS:
        found = dict(assign(own, user).arms)
        assert not found.keys() >= {"first", "second"}
        arms[next(iter(found))][found["third"]] += 1
    assert 5_700 < arms["first"].total() < 6_300
    assert 3_750 < arms["second"].total() < 4_250
    for within in arms.values():
        assert abs(within["one"] / within.total() - 0.5) < 0.04


def test_parameters_of_all_arms_come_together() -> None:
    values = {"per_owner_cap": 7, "exploration": 0.1, "video_exploration": 0.05}
    cap = [{"name": "a", "parameters": values}, {"name": "b", "weight": 0}]
    split = [{"name": "a", "parameters": {"trending_slots": 4}}, {"name": "b", "weight": 0}]
    own = plan(
        Running(definition("x", layer="owners", arms=cap), WHOLE), Running(definition("y", arms=split), WHOLE)
    )
    made = assign(own, "u1")
    assert made.label == "x/a,y/a"
    usual = FeedParameters(0.7, 2)
    assert usual.with_arm(made.parameters) == FeedParameters(0.7, 7, 4, 0.1, 0.05)
    assert usual.with_arm(made.parameters).trending_share(10) == 0.4
    assert usual.with_arm(NO_ARMS.parameters) == usual
    half = Assignment(parameters=definition().arms[1].parameters)
    assert FeedParameters(trending_slots=3).with_arm(half.parameters).trending_share(10) == 0.5


def test_a_holdout_is_in_no_experiment_at_all() -> None:
    own = (Running(definition("x"), WHOLE), Running(definition("y", layer="other"), WHOLE))
    found = counted(plan(*own, holdout=0.1))
    assert 1_800 < found[""] < 2_200
    assert all(label.count("/") == 2 for label in found if label)


def test_an_audience_is_told_by_what_the_request_says() -> None:
    own = plan(
        Running(
            definition(
                audience={"user_id_prefixes": ["user-1"], "languages": ["pt", "es"], "regions": ["BR"]}
            ),
            WHOLE,
        )
    )
    assert assign(own, "user-12", ("PT",), ("br", "AR")).arms
    for user, languages, regions in (
        ("user-2", ("pt",), ("BR",)),
        ("user-12", (), ("BR",)),
        ("user-12", ("en",), ("BR",)),
        ("user-12", ("pt",), ("AR",)),
    ):
        assert assign(own, user, languages, regions) is NO_ARMS


def test_who_tries_an_arm_has_it_whatever_the_rest_says() -> None:
    own = plan(
        Running(
            definition(overrides={"tester": "half"}, audience={"user_id_prefixes": ["nobody"]}), ((0, 1),)
        ),
        holdout=1.0,
    )
    assert assign(own, "tester").arms == (("mix", "half"),)
    assert assign(own, "user-1") is NO_ARMS


def test_an_arm_that_was_stopped_has_no_users_and_the_others_keep_theirs() -> None:
    before = plan(Running(definition(), WHOLE))
    after = plan(Running(definition(), WHOLE, frozenset(["half"])))
    for user in USERS[:1000]:
        label = assign(before, user).label
        assert assign(after, user).label == ("" if label == "mix/half" else label)


def test_buckets_are_given_once() -> None:
    assert free_buckets([], 10) == [(0, 10)]
    assert free_buckets([((0, 3), (5, 7))], 5) == [(3, 5), (7, 10)]
    assert free_buckets([((0, 600),), ((600, 999),)], 1) == [(999, 1000)]
    assert free_buckets([((0, 600),), ((600, 999),)], 2) is None


@pytest.mark.parametrize(
    ("changes", "field", "because"),
    [
        ({"arms": [{"name": "a"}]}, "definition.arms", "at least 2"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "definition", "same name"),
        ({"arms": [{"name": "a"}, {"name": "b b"}]}, "definition.arms[1].name", "pattern"),
        (
            {"arms": [{"name": "a", "weight": 0}, {"name": "b", "weight": 0}]},
            "definition",
            "no arm has a weight",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "parameters": {"personalised_share": 1.5}}]},
            "definition.arms[1].parameters.personalised_share",
            "less than or equal to 1",
        ),
        (
            {"arms": [{"name": "a"}, {"name": "b", "parameters": {"mix": 0.5}}]},
            "definition.arms[1].parameters.mix",
            "not permitted",
        ),
        (
            {
                "arms": [
                    {"name": "a"},
                    {"name": "b", "parameters": {"personalised_share": 0.5, "trending_slots": 1}},
                ]
            },
            "definition.arms[1].parameters",
            "exclude each other",
        ),
        ({"traffic_percent": 0.05}, "definition", "steps of 0.1"),
        ({"traffic_percent": 0}, "definition.traffic_percent", "greater than 0"),
        ({"overrides": {"u1": "nobody"}}, "definition", "'nobody', which is no arm"),
        ({"adaptation": {"metric": "fun"}}, "definition.adaptation.metric", "'likes'"),
        (
            {"adaptation": {"metric": "likes", "floor": 0.5}, "arms": [{"name": n} for n in "abc"]},
            "definition",
            "too much for 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], field: str, because: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        definition(**changes)
    found = {violation.field: violation.description for violation in refused.value.violations}
    assert because in found[field]
