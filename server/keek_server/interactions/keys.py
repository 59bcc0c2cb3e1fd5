"""The names of the projection's keys.

All share one hash tag, made of the prefix and the log's identity: a Redis Cluster keeps them in
one slot, as a Lua call demands, and the projection of another log is never mistaken for this
one's.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProjectionKeys:
    """The keys of one log's projection, whatever the generation."""

    prefix: str

    @classmethod
    def of(cls, redis_prefix: str, log_id: str) -> "ProjectionKeys":
        """The keys for a log."""
        return cls(f"{{{redis_prefix}:{log_id[:12]}}}:")

    @property
    def lease(self) -> str:
        """The token of the projector that may write; expires."""
        return f"{self.prefix}lease"

    @property
    def fence(self) -> str:
        """How often the lease was taken."""
        return f"{self.prefix}fence"

    @property
    def rebuild(self) -> str:
        """Exists while a rebuild is wanted."""
        return f"{self.prefix}rebuild"

    @property
    def current(self) -> str:
        """The generation that is read; absent until the first one is complete."""
        return f"{self.prefix}current"

    @property
    def plan(self) -> str:
        """The channel on which a change of the plan of releases is announced."""
        return f"{self.prefix}plan"

    def cached_feed(self, user_id: str) -> str:
        """The feed that was computed in advance for a user; expires."""
        return f"{self.prefix}cached:{user_id}"

    @property
    def generations(self) -> str:
        """A hash whose fields are the generations that exist, and `next`."""
        return f"{self.prefix}generations"

    def generation(self, number: int | str) -> str:
        """The prefix of one generation's own keys."""
        return f"{self.prefix}{number}:"

    def state(self, number: int | str) -> str:
        """A hash: watermark `seq`, its row's `tail`, and the `source` that it was built from."""
        return f"{self.generation(number)}state"
