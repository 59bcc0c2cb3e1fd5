"""The experiments of the clients' test server, in memory."""

# ruff: noqa: N802 - the names are gRPC methods

import json
from dataclasses import dataclass, field
from typing import Any

import grpc
from client_faults import Fault, Faults, error_info, page_of, status_metadata
from google.protobuf.message import Message

from keek.v1 import experiment_service_pb2 as pb
from keek.v1 import experiment_service_pb2_grpc
from keek.v1.experiment_service_pb2 import ExperimentState

REPORT = {"experiment_id": "e1", "arms": [{"name": "control", "likes": 0.25}]}
"""What every report says, as JSON."""

REPORT_TEXT = "ARM      LIKES\ncontrol   0.25\n"

REPORT_HTML = "<!doctype html>\n<title>e1: é</title>\n"


@dataclass(slots=True)
class Experiments(experiment_service_pb2_grpc.ExperimentServiceServicer):
    """Those that are known, with the states that they may have; definitions are not looked at."""

    faults: Faults
    stored: dict[str, pb.Experiment] = field(default_factory=dict)
    """By id, oldest first."""
    tokens: dict[str, str] = field(default_factory=dict)
    """What each method was last shown."""

    async def CreateExperiment(self, request: Any, context: Any) -> pb.CreateExperimentResponse:
        await self._arrived("CreateExperiment", request, context)
        definition = request.definition
        known = self.stored.get(definition.experiment_id)
        if known is not None and known.definition != definition:
            await _refuse(context, grpc.StatusCode.ALREADY_EXISTS, "there is another one of this id")
        made = pb.Experiment(definition=definition, state=ExperimentState.EXPERIMENT_STATE_DRAFT)
        made.create_time.FromSeconds(1 + len(self.stored))
        experiment = self.stored.setdefault(definition.experiment_id, made)
        await self._acknowledge(context)
        return pb.CreateExperimentResponse(experiment=experiment)

    async def UpdateExperiment(self, request: Any, context: Any) -> pb.UpdateExperimentResponse:
        await self._arrived("UpdateExperiment", request, context)
        experiment = await self._found(request.definition.experiment_id, context)
        experiment.definition.CopyFrom(request.definition)
        await self._acknowledge(context)
        return pb.UpdateExperimentResponse(experiment=experiment)

    async def StartExperiment(self, request: Any, context: Any) -> pb.StartExperimentResponse:
        await self._arrived("StartExperiment", request, context)
        experiment = await self._found(request.experiment_id, context)
        if experiment.state > ExperimentState.EXPERIMENT_STATE_RUNNING:
            await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "it was stopped")
        experiment.state = ExperimentState.EXPERIMENT_STATE_RUNNING
        experiment.start_time.FromSeconds(100)
        await self._acknowledge(context)
        return pb.StartExperimentResponse(experiment=experiment)

    async def StopExperiment(self, request: Any, context: Any) -> pb.StopExperimentResponse:
        await self._arrived("StopExperiment", request, context)
        experiment = await self._found(request.experiment_id, context)
        experiment.state = ExperimentState.EXPERIMENT_STATE_STOPPED
        experiment.stop_time.FromSeconds(200)
        await self._acknowledge(context)
        return pb.StopExperimentResponse(experiment=experiment)

    async def ConcludeExperiment(self, request: Any, context: Any) -> pb.ConcludeExperimentResponse:
        await self._arrived("ConcludeExperiment", request, context)
        experiment = await self._found(request.experiment_id, context)
        experiment.state = ExperimentState.EXPERIMENT_STATE_CONCLUDED
        experiment.winner, experiment.conclusion = request.winner, request.conclusion
        await self._acknowledge(context)
        return pb.ConcludeExperimentResponse(experiment=experiment)

    async def GetExperiment(self, request: Any, context: Any) -> pb.GetExperimentResponse:
        await self._arrived("GetExperiment", request, context)
        return pb.GetExperimentResponse(experiment=await self._found(request.experiment_id, context))

    async def ListExperiments(self, request: Any, context: Any) -> pb.ListExperimentsResponse:
        await self._arrived("ListExperiments", request, context)
        names, token = page_of(list(reversed(self.stored)), request.page_size, request.page_token)
        return pb.ListExperimentsResponse(
            experiments=[self.stored[name] for name in names], next_page_token=token
        )

    async def GetExperimentReport(self, request: Any, context: Any) -> pb.GetExperimentReportResponse:
        await self._arrived("GetExperimentReport", request, context)
        await self._found(request.experiment_id, context)
        return pb.GetExperimentReportResponse(
            report_json=json.dumps(REPORT, indent=2),
            report_text=REPORT_TEXT,
            report_html=REPORT_HTML if request.html else "",
        )

    async def _arrived(self, method: str, request: Message, context: Any) -> None:
        self.tokens[method] = dict(context.invocation_metadata()).get("authorization", "")
        await self.faults.strike(method, request, context)

    async def _acknowledge(self, context: Any) -> None:
        if self.faults.lost_acknowledgements:
            self.faults.lost_acknowledgements -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")

    async def _found(self, experiment_id: str, context: Any) -> pb.Experiment:
        if experiment_id not in self.stored:
            await _refuse(context, grpc.StatusCode.NOT_FOUND, f"no experiment {experiment_id!r}")
        return self.stored[experiment_id]


async def _refuse(context: Any, code: grpc.StatusCode, message: str) -> None:
    fault = Fault(code, message, [error_info(code.name)])
    await context.abort(code, message, status_metadata(fault))
