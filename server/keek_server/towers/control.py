"""How Triton's control API is guarded: its restricted protocols ask for a header with a token."""

from typing import Final

from pydantic import SecretStr

CONTROL_KEY: Final = "keek-control"
"""The key in `tritonserver --grpc-restricted-protocol=PROTOCOLS:KEY=TOKEN`."""

CONTROL_HEADER: Final = f"triton-grpc-protocol-{CONTROL_KEY}"
"""The gRPC metadata key that Triton derives from CONTROL_KEY; its value is the token."""

CONTROL_PROTOCOLS: Final = ("model-repository", "shared-memory", "trace", "logging")
"""What asks for the token: loading and unloading, and what else changes the server."""


def control_headers(token: SecretStr | None) -> dict[str, str]:
    """Headers for tritonclient's control calls (`load_model`, `get_model_repository_index`, ...).

    Empty without a token, for a Triton whose control API is guarded by the network alone.
    """
    return {} if token is None else {CONTROL_HEADER: token.get_secret_value()}
