"""Calls of the ReleaseService."""

from collections.abc import Generator, Iterable, Iterator
from typing import Unpack

from keek.blocking.connection import BlockingConnection, Method
from keek.changes import ChangeOptions, ChangeRequest, change_of, change_timeout_s
from keek.v1.release_service_pb2 import (
    ActivateReleaseRequest,
    ActivateReleaseResponse,
    DiffReleasesRequest,
    DiffReleasesResponse,
    EndTrialRequest,
    EndTrialResponse,
    GetReleaseRequest,
    GetReleaseResponse,
    ListReleasesRequest,
    ListReleasesResponse,
    Release,
    RollbackReleaseRequest,
    RollbackReleaseResponse,
    Rollout,
    StartTrialRequest,
    StartTrialResponse,
    TrialKind,
    WatchReleasesRequest,
    WatchReleasesResponse,
)

ChangeResponse = ActivateReleaseResponse | RollbackReleaseResponse | StartTrialResponse | EndTrialResponse


class ReleaseCalls(BlockingConnection):
    """Feature of `keek.Client`.

    Those that change what serves, and `diff_releases`, need the client's `admin_token`, or raise
    `PermissionDeniedError`. A change is made once: its `request_id`, made once a call, makes its
    retries harmless. It gives the `Rollout`: with `converged` when every server has carried out
    the change within `wait_s`, else with `pending_servers`, which still follow when they can.
    """

    def list_releases(
        self, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> ListReleasesResponse:
        """One page of the releases, newest first, and what serves where."""
        request = ListReleasesRequest(page_size=page_size, page_token=page_token)
        return self._call(
            self._stubs.releases.ListReleases, request, timeout_s, self._timeouts.list_releases_s
        )

    def iter_releases(self, *, page_size: int = 100, timeout_s: float | None = None) -> Iterator[Release]:
        """All releases, page after page; `timeout_s` is for one page."""
        request = ListReleasesRequest(page_size=page_size)
        pages = self._pages(
            self._stubs.releases.ListReleases, request, timeout_s, self._timeouts.list_releases_s
        )
        return (release for page in pages for release in page.releases)

    def get_release(self, release_id: str, *, timeout_s: float | None = None) -> GetReleaseResponse:
        """One release, with what its gates measured and its manifest.

        Raises:
            NotFoundError: The release is not registered.
        """
        request = GetReleaseRequest(release_id=release_id)
        return self._call(self._stubs.releases.GetRelease, request, timeout_s, self._timeouts.get_release_s)

    def activate_release(self, release_id: str, **options: Unpack[ChangeOptions]) -> Rollout:
        """Makes a release the one that everyone gets, and ends a trial.

        Raises:
            NotFoundError: The release is not registered.
            FailedPreconditionError: It was refused, or its files are gone.
        """
        request = ActivateReleaseRequest(release_id=release_id)
        return self._change(self._stubs.releases.ActivateRelease, request, options)

    def rollback_release(self, **options: Unpack[ChangeOptions]) -> Rollout:
        """Goes back to the release before the active one, and ends a trial.

        What was gone back from is not gone back to by another call.

        Raises:
            FailedPreconditionError: There is none before it that could serve.
        """
        request = RollbackReleaseRequest()
        return self._change(self._stubs.releases.RollbackRelease, request, options)

    def start_canary(self, release_id: str, percent: float, **options: Unpack[ChangeOptions]) -> Rollout:
        """Gives a release's feeds to a percentage of the users, always the same ones.

        It takes the place of another trial. More users get it when the percentage grows; those who
        had it keep it.

        Raises:
            NotFoundError, FailedPreconditionError: As `activate_release`; also for the active one.
        """
        kind = TrialKind.TRIAL_KIND_CANARY
        request = StartTrialRequest(release_id=release_id, kind=kind, percent=percent)
        return self._change(self._stubs.releases.StartTrial, request, options)

    def start_shadow(self, release_id: str, percent: float, **options: Unpack[ChangeOptions]) -> Rollout:
        """Computes a release's feeds beside a percentage of those that are shown, and shows none.

        It takes the place of another trial. What comes of the comparison stands in the figures of
        each server.

        Raises:
            NotFoundError, FailedPreconditionError: As `activate_release`; also for the active one.
        """
        kind = TrialKind.TRIAL_KIND_SHADOW
        request = StartTrialRequest(release_id=release_id, kind=kind, percent=percent)
        return self._change(self._stubs.releases.StartTrial, request, options)

    def end_trial(self, **options: Unpack[ChangeOptions]) -> Rollout:
        """Ends a canary or a shadow: everyone gets the active release.

        Raises:
            FailedPreconditionError: No release is tried.
        """
        return self._change(self._stubs.releases.EndTrial, EndTrialRequest(), options)

    def watch_releases(
        self, *, timeout_s: float | None = None
    ) -> Generator[WatchReleasesResponse, None, None]:
        """What serves where: once at the start, then at every change.

        One call that starts with the first `next()` and has no end of its own: it raises
        `DeadlineExceededError` after `timeout_s`, an hour by default; then watch again. To stop
        early, call the generator's `close()`, or drop it.
        """
        return self._stream(
            self._stubs.releases.WatchReleases,
            WatchReleasesRequest(),
            timeout_s,
            self._timeouts.watch_releases_s,
        )

    def diff_releases(
        self,
        release_id: str,
        other_release_id: str,
        user_ids: Iterable[str],
        *,
        page_size: int = 0,
        timeout_s: float | None = None,
    ) -> DiffReleasesResponse:
        """The feeds that at most 100 users would get of each of two releases, side by side.

        Nothing is shown to anyone, and nothing counts as seen.

        Raises:
            NotFoundError: A release is not registered.
            FailedPreconditionError: The files of one are gone.
            ResourceExhaustedError: The server compares for others already.
        """
        request = DiffReleasesRequest(
            release_id=release_id,
            other_release_id=other_release_id,
            user_ids=user_ids,
            page_size=page_size,
        )
        return self._call(
            self._stubs.releases.DiffReleases,
            request,
            timeout_s,
            self._timeouts.diff_releases_s,
            self._admin,
        )

    def _change(
        self,
        method: Method[ChangeRequest, ChangeResponse],
        request: ChangeRequest,
        options: ChangeOptions,
    ) -> Rollout:
        default_s = change_timeout_s(options, self._timeouts.change_release_s)
        response = self._call(
            method, change_of(request, options), options.get("timeout_s"), default_s, self._admin
        )
        return response.rollout
