"""Which calls need the admin token."""

import pytest
from pydantic import SecretStr

from keek.v1 import experiment_service_pb2, release_service_pb2
from keek_server.errors import PermissionDeniedError
from keek_server.rpc.admin import SCOPES, Authority, Scope

READS = {"ListReleases", "GetRelease", "WatchReleases", "ListExperiments", "GetExperiment"}
SERVICES = (
    release_service_pb2.DESCRIPTOR.services_by_name["ReleaseService"],
    experiment_service_pb2.DESCRIPTOR.services_by_name["ExperimentService"],
)


def test_the_table_names_every_method_of_these_services_that_does_not_only_read_and_no_other() -> None:
    others = {
        f"/{service.full_name}/{method.name}"
        for service in SERVICES
        for method in service.methods
        if method.name not in READS
    }
    assert {name for name, scope in SCOPES.items() if scope is Scope.ADMIN} == others


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
