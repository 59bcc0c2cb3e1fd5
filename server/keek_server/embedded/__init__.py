"""A real Triton and a real Redis-compatible server on one machine, without Docker."""

from keek_server.embedded.running import RunningStack, read_running_stack, with_running_stack
from keek_server.embedded.stack import EmbeddedStack

__all__ = ["EmbeddedStack", "RunningStack", "read_running_stack", "with_running_stack"]
