"""Who may make which calls. Most calls are everybody's; those in SCOPES need what the table says."""

import hmac
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Final

from pydantic import SecretStr

from keek.v1 import experiment_service_pb2, release_service_pb2
from keek_server.errors import PermissionDeniedError


class Scope(Enum):
    """What a caller must have shown before a call begins."""

    ADMIN = "admin"
    """The token `Settings.admin_token`, as `authorization: Bearer TOKEN`."""


_EXPERIMENTS = experiment_service_pb2.DESCRIPTOR.services_by_name["ExperimentService"].full_name
_RELEASES = release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"].full_name

SCOPES: Final[Mapping[str, Scope]] = {
    f"/{_RELEASES}/ActivateRelease": Scope.ADMIN,
    f"/{_RELEASES}/RollbackRelease": Scope.ADMIN,
    f"/{_RELEASES}/StartTrial": Scope.ADMIN,
    f"/{_RELEASES}/EndTrial": Scope.ADMIN,
    # It changes nothing, but it shows other people's feeds, and computes two for each of them.
    f"/{_RELEASES}/DiffReleases": Scope.ADMIN,
    f"/{_EXPERIMENTS}/CreateExperiment": Scope.ADMIN,
    f"/{_EXPERIMENTS}/UpdateExperiment": Scope.ADMIN,
    f"/{_EXPERIMENTS}/StartExperiment": Scope.ADMIN,
    f"/{_EXPERIMENTS}/StopExperiment": Scope.ADMIN,
    f"/{_EXPERIMENTS}/ConcludeExperiment": Scope.ADMIN,
    # It changes nothing, but reads all that was shown and done while it ran.
    f"/{_EXPERIMENTS}/GetExperimentReport": Scope.ADMIN,
}
"""By method, as `/keek.v1.ReleaseService/ActivateRelease`. A method that is not here needs nothing."""

CallMetadata = Iterable[tuple[str, str | bytes]]


class Authority:
    """Checks, before a handler runs, that its caller may make the call."""

    def __init__(self, admin_token: SecretStr | None) -> None:
        # Tokens that come from files often end with a line break, which no caller can send.
        self._admin = admin_token.get_secret_value().strip().encode() if admin_token else b""

    def check(self, method: str, metadata: CallMetadata) -> None:
        """Returns when the call may go on.

        Args:
            method: Full name, with the leading slash.
            metadata: That the caller sent.

        Raises:
            PermissionDeniedError: When it may not; says what to set.
        """
        if SCOPES.get(method) is Scope.ADMIN:
            self._check_admin(metadata)

    def _check_admin(self, metadata: CallMetadata) -> None:
        if not self._admin:
            raise PermissionDeniedError("this server takes no such calls: KEEK_ADMIN_TOKEN is not set there")
        shown = _bearer(metadata)
        if shown is None:
            raise PermissionDeniedError(
                "this call needs the admin token, that of KEEK_ADMIN_TOKEN on the server, and none was sent"
            )
        if not hmac.compare_digest(shown, self._admin):
            raise PermissionDeniedError("the admin token is not that of KEEK_ADMIN_TOKEN on the server")


def _bearer(metadata: CallMetadata) -> bytes | None:
    for key, value in metadata:
        if key == "authorization":
            text = value.decode("latin-1") if isinstance(value, bytes) else value
            scheme, _, token = text.strip().partition(" ")
            if scheme.lower() == "bearer" and token:
                return token.strip().encode()
    return None
