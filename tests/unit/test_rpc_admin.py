"""Which calls need the admin token."""

import pytest
from pydantic import SecretStr

from keek.v1 import release_service_pb2
from keek_server.errors import PermissionDeniedError
from keek_server.rpc.admin import SCOPES, Authority, Scope

READS = {"ListReleases", "GetRelease", "WatchReleases"}
SERVICE = release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"]


def test_every_method_of_the_release_service_that_does_not_only_read_needs_the_admin_scope() -> None:
    others = {method.name for method in SERVICE.methods} - READS
    assert {name for name, scope in SCOPES.items() if scope is Scope.ADMIN} >= {
        f"/{SERVICE.full_name}/{name}" for name in others
    }


def test_the_table_names_no_method_that_does_not_exist() -> None:
    known = {f"/{SERVICE.full_name}/{method.name}" for method in SERVICE.methods}
    assert set(SCOPES) <= known


@pytest.mark.parametrize("token", [None, SecretStr("secret")])
def test_a_call_without_a_scope_is_everybodys(token: SecretStr | None) -> None:
    Authority(token).check("/keek.v1.FeedService/ListFeed", ())
    with pytest.raises(PermissionDeniedError):
        Authority(token).check("/keek.v1.ReleaseService/EndTrial", ())


def test_the_first_bearer_token_counts_and_may_come_as_bytes() -> None:
    authority = Authority(SecretStr("secret\n"))
    method = "/keek.v1.ReleaseService/EndTrial"
    authority.check(method, [("other", "x"), ("authorization", b"Bearer secret")])
    with pytest.raises(PermissionDeniedError, match="is not that of"):
        authority.check(method, [("authorization", "Bearer s\xe9cret"), ("authorization", "Bearer secret")])
