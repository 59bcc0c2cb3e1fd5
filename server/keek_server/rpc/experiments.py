"""ExperimentService: decode, call, encode."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict

from keek.v1 import experiment_service_pb2 as pb
from keek.v1 import experiment_service_pb2_grpc
from keek_server.errors import InvalidArgumentError
from keek_server.experiments.attribution import WINDOW_HOURS
from keek_server.experiments.definitions import ExperimentDefinition
from keek_server.experiments.registry import Experiment, ExperimentRegistry
from keek_server.experiments.reports import ExperimentReports
from keek_server.rpc.guard import Context
from keek_server.rpc.tokens import decode_position, encode_position

_DEFAULT_PAGE_SIZE = 20


class ExperimentServicer(experiment_service_pb2_grpc.ExperimentServiceServicer):
    """See proto/keek/v1/experiment_service.proto. Who may call what is `rpc.admin`'s matter."""

    def __init__(
        self,
        registry: ExperimentRegistry,
        announce: Callable[[], Awaitable[None]],
        reports: ExperimentReports,
    ) -> None:
        """
        Args:
            registry: What exists.
            announce: Tells all servers that something has changed.
            reports: Makes reports.
        """
        self._registry = registry
        self._announce = announce
        self._reports = reports

    async def CreateExperiment(
        self, request: pb.CreateExperimentRequest, _context: Context
    ) -> pb.CreateExperimentResponse:
        """A draft."""
        made = await self._registry.create(_decode(request.definition))
        return pb.CreateExperimentResponse(experiment=_encode(made))

    async def UpdateExperiment(
        self, request: pb.UpdateExperimentRequest, _context: Context
    ) -> pb.UpdateExperimentResponse:
        """What may change."""
        changed = await self._changed(self._registry.update(_decode(request.definition)))
        return pb.UpdateExperimentResponse(experiment=changed)

    async def StartExperiment(
        self, request: pb.StartExperimentRequest, _context: Context
    ) -> pb.StartExperimentResponse:
        """From here on it has users."""
        changed = await self._changed(self._registry.start(request.experiment_id))
        return pb.StartExperimentResponse(experiment=changed)

    async def StopExperiment(
        self, request: pb.StopExperimentRequest, _context: Context
    ) -> pb.StopExperimentResponse:
        """From here on it has none."""
        changed = await self._changed(self._registry.stop(request.experiment_id))
        return pb.StopExperimentResponse(experiment=changed)

    async def ConcludeExperiment(
        self, request: pb.ConcludeExperimentRequest, _context: Context
    ) -> pb.ConcludeExperimentResponse:
        """With what was learnt."""
        concluded = self._registry.conclude(request.experiment_id, request.winner, request.conclusion)
        return pb.ConcludeExperimentResponse(experiment=await self._changed(concluded))

    async def GetExperiment(
        self, request: pb.GetExperimentRequest, _context: Context
    ) -> pb.GetExperimentResponse:
        """One."""
        return pb.GetExperimentResponse(experiment=_encode(await self._registry.get(request.experiment_id)))

    async def ListExperiments(
        self, request: pb.ListExperimentsRequest, _context: Context
    ) -> pb.ListExperimentsResponse:
        """One page, the latest first."""
        limit = request.page_size or _DEFAULT_PAGE_SIZE
        page = await self._registry.list(limit + 1, decode_position(request.page_token))
        response = pb.ListExperimentsResponse(experiments=map(_encode, page[:limit]))
        if len(page) > limit:
            last = page[limit - 1]
            response.next_page_token = encode_position(last.create_time_us, last.id)
        return response

    async def GetExperimentReport(
        self, request: pb.GetExperimentReportRequest, context: Context
    ) -> pb.GetExperimentReportResponse:
        """All figures at present."""
        report = await self._reports.make(
            request.experiment_id,
            window_hours=request.window_hours or WINDOW_HOURS,
            deadline_s=context.time_remaining(),
        )
        return pb.GetExperimentReportResponse(
            report_json=json.dumps(report.figures),
            report_text=report.text,
            report_html=report.html if request.html else "",
        )

    async def _changed(self, change: Awaitable[Experiment]) -> pb.Experiment:
        changed = await change
        await self._announce()
        return _encode(changed)


def _decode(message: pb.ExperimentDefinition) -> ExperimentDefinition:
    values: dict[str, Any] = MessageToDict(message, preserving_proto_field_name=True)
    users = [override.user_id for override in message.overrides]
    if len(set(users)) < len(users):
        raise InvalidArgumentError.of("definition.overrides", "name a user twice")
    return ExperimentDefinition.of(
        values | {"overrides": {override.user_id: override.arm for override in message.overrides}}
    )


def _encode(experiment: Experiment) -> pb.Experiment:
    values = experiment.definition.model_dump(mode="json", exclude_none=True, exclude={"overrides"})
    message = pb.Experiment(
        definition=ParseDict(values, pb.ExperimentDefinition()),
        state=experiment.state.value,  # type: ignore[arg-type]  # numbered alike
        winner=experiment.winner,
        conclusion=experiment.conclusion,
    )
    for user_id, arm in experiment.definition.overrides.items():
        message.definition.overrides.add(user_id=user_id, arm=arm)
    message.create_time.FromMicroseconds(experiment.create_time_us)
    if experiment.start_time_us is not None:
        message.start_time.FromMicroseconds(experiment.start_time_us)
    if experiment.stop_time_us is not None:
        message.stop_time.FromMicroseconds(experiment.stop_time_us)
    for stopped in experiment.stopped_arms:
        message.stopped_arms.add(arm=stopped.name, reason=stopped.reason).stop_time.FromMicroseconds(
            stopped.time_us
        )
    return message
