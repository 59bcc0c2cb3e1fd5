"""Calls of the ExperimentService."""

from collections.abc import AsyncGenerator

from keek.asynchronous.connection import AsyncConnection, Method, Request
from keek.v1.experiment_service_pb2 import (
    ConcludeExperimentRequest,
    ConcludeExperimentResponse,
    CreateExperimentRequest,
    CreateExperimentResponse,
    Experiment,
    ExperimentDefinition,
    GetExperimentReportRequest,
    GetExperimentReportResponse,
    GetExperimentRequest,
    ListExperimentsRequest,
    ListExperimentsResponse,
    StartExperimentRequest,
    StartExperimentResponse,
    StopExperimentRequest,
    StopExperimentResponse,
    UpdateExperimentRequest,
    UpdateExperimentResponse,
)

ChangeResponse = (
    CreateExperimentResponse
    | UpdateExperimentResponse
    | StartExperimentResponse
    | StopExperimentResponse
    | ConcludeExperimentResponse
)


class ExperimentCalls(AsyncConnection):
    """Feature of `keek.aio.Client`.

    Those that change something, and `get_experiment_report`, need the client's `admin_token`, or
    raise `PermissionDeniedError`. A change says what is to be, not what is to be done: made once
    more, as its retries are, it succeeds and changes nothing. It gives the experiment as it is then.
    """

    async def list_experiments(
        self, *, page_size: int = 0, page_token: str = "", timeout_s: float | None = None
    ) -> ListExperimentsResponse:
        """One page of the experiments, the latest one first."""
        request = ListExperimentsRequest(page_size=page_size, page_token=page_token)
        return await self._call(
            self._stubs.experiments.ListExperiments, request, timeout_s, self._timeouts.list_experiments_s
        )

    def iter_experiments(
        self, *, page_size: int = 20, timeout_s: float | None = None
    ) -> AsyncGenerator[Experiment, None]:
        """All experiments, page after page; `timeout_s` is for one page.

        Definitions may be long: a hundred of the longest would not fit in one message.
        """
        request = ListExperimentsRequest(page_size=page_size)
        pages = self._pages(
            self._stubs.experiments.ListExperiments, request, timeout_s, self._timeouts.list_experiments_s
        )
        return (experiment async for page in pages for experiment in page.experiments)

    async def get_experiment(self, experiment_id: str, *, timeout_s: float | None = None) -> Experiment:
        """One experiment.

        Raises:
            NotFoundError: There is none of this id.
        """
        request = GetExperimentRequest(experiment_id=experiment_id)
        response = await self._call(
            self._stubs.experiments.GetExperiment, request, timeout_s, self._timeouts.get_experiment_s
        )
        return response.experiment

    async def create_experiment(
        self, definition: ExperimentDefinition, *, timeout_s: float | None = None
    ) -> Experiment:
        """Makes an experiment known, as a draft that touches nobody.

        Raises:
            InvalidArgumentError: The definition cannot be carried out; `violations` name its fields.
            AlreadyExistsError: There is another one of this id.
        """
        request = CreateExperimentRequest(definition=definition)
        return await self._change_experiment(self._stubs.experiments.CreateExperiment, request, timeout_s)

    async def update_experiment(
        self, definition: ExperimentDefinition, *, timeout_s: float | None = None
    ) -> Experiment:
        """Makes an experiment be as `definition` says, the whole of it.

        A draft may change in any way; a running one in the weights of its arms, in its overrides,
        and in whether and how it adapts.

        Raises:
            InvalidArgumentError: As `create_experiment`.
            NotFoundError: There is none of this id.
            FailedPreconditionError: In its state it may not change like this.
        """
        request = UpdateExperimentRequest(definition=definition)
        return await self._change_experiment(self._stubs.experiments.UpdateExperiment, request, timeout_s)

    async def start_experiment(self, experiment_id: str, *, timeout_s: float | None = None) -> Experiment:
        """Gives an experiment its share of the users of its layer.

        Raises:
            NotFoundError: There is none of this id.
            FailedPreconditionError: It ran before, or others have the users of its layer.
        """
        request = StartExperimentRequest(experiment_id=experiment_id)
        return await self._change_experiment(self._stubs.experiments.StartExperiment, request, timeout_s)

    async def stop_experiment(self, experiment_id: str, *, timeout_s: float | None = None) -> Experiment:
        """Everyone gets the usual feeds again; it cannot be started another time.

        Raises:
            NotFoundError: There is none of this id.
            FailedPreconditionError: In its state it cannot be stopped.
        """
        request = StopExperimentRequest(experiment_id=experiment_id)
        return await self._change_experiment(self._stubs.experiments.StopExperiment, request, timeout_s)

    async def conclude_experiment(
        self, experiment_id: str, *, conclusion: str, winner: str = "", timeout_s: float | None = None
    ) -> Experiment:
        """Notes what was learnt, and which arm won, if one did; stops what still runs.

        Raises:
            InvalidArgumentError: It has no such arm.
            NotFoundError: There is none of this id.
            FailedPreconditionError: It was concluded already, in other words.
        """
        request = ConcludeExperimentRequest(experiment_id=experiment_id, winner=winner, conclusion=conclusion)
        return await self._change_experiment(self._stubs.experiments.ConcludeExperiment, request, timeout_s)

    async def get_experiment_report(
        self,
        experiment_id: str,
        *,
        window_hours: float = 0.0,
        html: bool = False,
        timeout_s: float | None = None,
    ) -> GetExperimentReportResponse:
        """What each arm's users did, beside those of the control: as JSON, as a table and, with
        `html`, as a page.

        An interaction belongs to the latest feed that showed its video to the user within
        `window_hours`; 0 means 24.

        Raises:
            NotFoundError: There is none of this id.
        """
        request = GetExperimentReportRequest(
            experiment_id=experiment_id, window_hours=window_hours, html=html
        )
        return await self._call(
            self._stubs.experiments.GetExperimentReport,
            request,
            timeout_s,
            self._timeouts.get_experiment_report_s,
            self._admin,
        )

    async def _change_experiment(
        self,
        method: Method[Request, ChangeResponse],
        request: Request,
        timeout_s: float | None,
    ) -> Experiment:
        response = await self._call(
            method, request, timeout_s, self._timeouts.change_experiment_s, self._admin
        )
        return response.experiment
