"""How every connection to Triton is made."""

from typing import Final

DIRECT: Final = ("grpc.enable_http_proxy", 0)
"""A channel argument: not through the proxy of `http_proxy`. Triton is on the machine or the inner network of
those who ask it, and a proxy would be asked for 127.0.0.1, too."""
