"""The channel's policy is data, and each part of it can be set by its name."""

import json

import pytest

import keek
from keek.channel import DEFAULT_OPTIONS, channel_options, service_config


def test_the_default_policy_retries_unavailable_calls_of_all_methods_but_uploads() -> None:
    config = json.loads(service_config(keek.RetryPolicy()))
    assert config["methodConfig"] == [
        {
            "name": [{}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.050000s",
                "maxBackoff": "1.000000s",
                "backoffMultiplier": 2.0,
                "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
            },
        },
        # Uploads go on from what has arrived, which gRPC cannot know.
        {"name": [{"service": "keek.v1.VideoService", "method": "UploadVideo"}]},
    ]
    assert config["loadBalancingConfig"] == [{"round_robin": {}}]
    assert config["retryThrottling"] == {"maxTokens": 100, "tokenRatio": 0.1}


def test_without_a_retry_policy_nothing_is_retried_and_addresses_still_take_turns() -> None:
    assert json.loads(service_config(None)) == {"loadBalancingConfig": [{"round_robin": {}}]}
    assert dict(channel_options("keek:1", None))["grpc.enable_retries"] == 0


def test_message_sizes_and_reconnection_are_bounded() -> None:
    options = dict(channel_options("keek:1", keek.RetryPolicy()))
    for name in (
        "grpc.max_send_message_length",
        "grpc.max_receive_message_length",
        "grpc.keepalive_time_ms",
        "grpc.max_reconnect_backoff_ms",
    ):
        assert int(options[name]) > 0


@pytest.mark.parametrize(
    ("target", "is_local"),
    [
        ("localhost:50051", True),
        ("127.0.0.1:50051", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("keek.internal:50051", False),
        ("localhost.example:50051", False),
        ("ipv4:10.0.0.1:50051,127.0.0.1:50051", False),
    ],
)
def test_a_proxy_is_not_asked_for_this_machine(target: str, *, is_local: bool) -> None:
    assert (dict(channel_options(target, None)).get("grpc.enable_http_proxy") == 0) is is_local
    chosen = channel_options(target, None, {"grpc.enable_http_proxy": 1})
    assert dict(chosen)["grpc.enable_http_proxy"] == 1


def test_a_channel_option_is_overridden_by_its_name_alone() -> None:
    options = dict(
        channel_options("keek:1", keek.RetryPolicy(), {"grpc.keepalive_time_ms": 60_000, "grpc.more": 1})
    )
    assert options["grpc.keepalive_time_ms"] == 60_000
    assert options["grpc.more"] == 1
    unchanged = set(DEFAULT_OPTIONS) - {"grpc.keepalive_time_ms"}
    assert all(options[name] == DEFAULT_OPTIONS[name] for name in unchanged)


@pytest.mark.parametrize("attempts", [1, 6])
def test_a_number_of_attempts_that_grpc_would_not_make_is_refused(attempts: int) -> None:
    with pytest.raises(ValueError, match="max_attempts"):
        keek.RetryPolicy(max_attempts=attempts)


@pytest.mark.parametrize("field", ["initial_backoff_s", "max_backoff_s", "backoff_multiplier"])
def test_backoffs_that_do_not_wait_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match="backoff"):
        keek.RetryPolicy(**{field: 0.0})  # type: ignore[arg-type]


def test_a_deadline_of_no_call_is_refused() -> None:
    with pytest.raises(TypeError, match="no_such_call_s"):
        keek.Timeouts(no_such_call_s=1.0)  # type: ignore[call-arg]


def test_a_negative_patience_is_refused() -> None:
    with pytest.raises(ValueError, match="upload_patience_s"):
        keek.RetryPolicy(upload_patience_s=-1)
