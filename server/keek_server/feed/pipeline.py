"""The feed request: one readable function, top to bottom, over parts that know nothing of each other."""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import Any, Final

from keek_server import metrics
from keek_server.clock import now_us
from keek_server.errors import KeekError
from keek_server.experiments.assignment import NO_ARMS, Assignment
from keek_server.feed.parameters import USUAL, FeedParameters
from keek_server.feed.types import (
    Candidate,
    Degradation,
    FeedContext,
    FeedPage,
    FeedQuery,
    FeedSource,
    Filter,
    FilterTrace,
    Hydrator,
    Ranking,
    Scorer,
    Selection,
    Selector,
    SideEffect,
    Source,
    SourceTrace,
)
from keek_server.releases.live import LiveRelease
from keek_server.releases.opening import ServingRelease

logger = logging.getLogger(__name__)

_STEP_SHARE: Final = 1 / 3
"""Share of what is left of a feed's deadline that one step may take: when every step on the way is late, both
hydrators, the sources and what stands in for them or the ranker, a fifth of it is left to make the page."""


@dataclass(frozen=True, slots=True)
class Stages:
    """The parts of the pipeline, in the order they run."""

    hydrators: Sequence[Hydrator]
    """Asked in turn until one succeeds."""
    sources: Sequence[Source]
    """Asked side by side."""
    reserves: Sequence[Source]
    """Asked only for a page that the others do not fill as planned."""
    filters: Sequence[Filter]
    scorer: Scorer
    selector: Selector
    side_effects: Sequence[SideEffect]
    fallbacks: Mapping[FeedSource, Source] = field(default_factory=dict)
    """Asked only for a request in which the source that they stand in for failed, or had nothing to go by."""
    ranking: Ranking | None = None
    """After the scorer, in feeds that are to be ranked."""


class FeedPipeline:
    """Runs the stages; owns deadlines, fail-open, metrics and the trace."""

    def __init__(
        self,
        live: LiveRelease,
        stages: Stages,
        *,
        source_deadline_s: float,
        parameters: FeedParameters = USUAL,
        assign: Callable[[FeedQuery], Assignment] | None = None,
    ) -> None:
        """
        Args:
            live: The releases that serve.
            stages: The parts.
            source_deadline_s: The longest that a step may take.
            parameters: Of feeds that no experiment shapes.
            assign: Says which arms of experiments shape a feed; by default none do.
        """
        self._live = live
        self._stages = stages
        self._parameters = parameters
        self._certain = replace(parameters, exploration=0.0, video_exploration=0.0)
        self._assign = assign
        self._source_deadline_s = source_deadline_s
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, query: FeedQuery, serving: ServingRelease | None = None) -> FeedPage:
        """Makes one page.

        Args:
            query: What is asked for.
            serving: The release that makes it, and no experiment nor chance has a part in it; by default the
                one that serves.

        Raises:
            UnavailableError: Before the first release is active.
        """
        context = self._capture(query, serving)
        await self._hydrate(context)
        proposed, sources = await self._fetch(context)
        candidates, filters = self._sift(context, proposed)
        if context.parameters.ranker:
            await self._rank(context, candidates)
        selection = self._stages.selector.select(context, candidates)
        if not selection.as_planned:
            proposed, reserves = await self._ask_all(self._stages.reserves, context)
            further, again = self._sift(context, proposed)
            candidates, sources = candidates + further, sources + reserves
            filters = list(map(_both, filters, again))
            selection = self._stages.selector.select(context, candidates)
        _name_replacements(context, selection)
        elapsed_s = time.monotonic() - context.started_s
        return FeedPage(context, selection, sources, filters, candidates, elapsed_s)

    def answered(self, page: FeedPage) -> None:
        """Starts the side effects of a page, one after the other, once it is on its way to the caller."""
        asyncio.get_running_loop().call_soon(self._apply, page)

    async def drain(self) -> None:
        """Waits for the side effects that are under way."""
        await asyncio.sleep(0)  # for those that have yet to begin
        await asyncio.gather(*self._running)

    def _capture(self, query: FeedQuery, serving: ServingRelease | None) -> FeedContext:
        if serving is not None:
            # To be compared with another's, which chance would make less alike.
            return FeedContext(query, serving, now_us(), parameters=self._certain)
        assignment = self._assign(query) if self._assign else NO_ARMS
        if not assignment.arms:
            return self._as_usual(query, self._live.serving(query.user_id))
        pinned = assignment.parameters.release_id
        serving = self._live.pinned(pinned) if pinned else self._live.serving(query.user_id)
        if serving is None or (assignment.parameters.ranker and serving.ranker is None):
            # Not yet, or not on this server: what the arm stands for cannot be shown, and is not said to be.
            return self._as_usual(query, self._live.serving(query.user_id))
        parameters = self._parameters.with_arm(assignment.parameters)
        return FeedContext(query, serving, now_us(), parameters=parameters, assignment=assignment)

    def _as_usual(self, query: FeedQuery, serving: ServingRelease) -> FeedContext:
        return FeedContext(query, serving, now_us(), parameters=self._parameters)

    async def _hydrate(self, context: FeedContext) -> None:
        problems: list[str] = []
        for hydrator in self._stages.hydrators:
            problem = await self._try(hydrator, context, hydrator.hydrate(context))
            if not problem:
                if problems:
                    _degrade(context, f"history read from the {hydrator.name}: {'; '.join(problems)}")
                return
            problems.append(problem)
        if problems:
            # Nothing personal can be made of nothing; what was made before can stand in.
            context.failed.add(FeedSource.PERSONALISED)
            _degrade(context, f"history unknown: {'; '.join(problems)}")

    async def _rank(self, context: FeedContext, candidates: list[Candidate]) -> None:
        """Where it fails, the scores' order stays."""
        ranking = self._stages.ranking
        if ranking is None:
            return
        problem = await self._try(ranking, context, ranking.rank(context, candidates))
        if problem:
            _degrade(context, f"in the order of their scores: {problem}")

    async def _try(
        self, step: Hydrator | Ranking, context: FeedContext, work: Coroutine[Any, Any, None]
    ) -> str:
        """Why a step failed that does some work; empty when it did not."""
        slice_s = self._slice_s(context)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(slice_s):
                await work
        except TimeoutError:
            problem = _late(step.asks, slice_s)
        except KeekError as error:
            problem = str(error)
        except Exception:
            logger.exception("%s failed", step.name)
            problem = f"{step.asks}: internal error"
        else:
            problem = ""
        metrics.labelled(metrics.stage_seconds, step.name).observe(time.perf_counter() - started)
        if problem:
            metrics.failures.labels(step.name).inc()
        return problem

    async def _fetch(self, context: FeedContext) -> tuple[list[Candidate], list[SourceTrace]]:
        candidates, traces = await self._ask_all(self._stages.sources, context)
        fallbacks = [source for name, source in self._stages.fallbacks.items() if name in context.failed]
        if fallbacks:
            more, further = await self._ask_all(fallbacks, context)
            return candidates + more, traces + further
        return candidates, traces

    async def _ask_all(
        self, sources: Iterable[Source], context: FeedContext
    ) -> tuple[list[Candidate], list[SourceTrace]]:
        """Side by side. A task costs more than what most sources do: those that wait have one each, but for
        the last."""
        enabled = [source for source in sources if source.enabled(context)]
        answers = {source.source: self._ask_at_once(source, context) for source in enabled}
        waiting = [source for source in enabled if answers[source.source] is None]
        tasks = {other.source: asyncio.create_task(self._ask(other, context)) for other in waiting[:-1]}
        try:
            for source in waiting[-1:]:
                answers[source.source] = await self._ask(source, context)
            for name, task in tasks.items():
                answers[name] = await task
        finally:
            for task in tasks.values():
                task.cancel()
        given = [answer for answer in answers.values() if answer is not None]
        return [c for candidates, _ in given for c in candidates], [trace for _, trace in given]

    def _ask_at_once(
        self, source: Source, context: FeedContext
    ) -> tuple[list[Candidate], SourceTrace] | None:
        started = time.perf_counter()
        try:
            candidates = source.at_once(context, context.query.page_size)
        except Exception as error:  # noqa: BLE001 - a fault of one source must not cost the user the feed
            return self._traced(source, context, started, [], _reason(source, error))
        return None if candidates is None else self._traced(source, context, started, candidates)

    async def _ask(self, source: Source, context: FeedContext) -> tuple[list[Candidate], SourceTrace]:
        slice_s = self._slice_s(context)
        candidates: list[Candidate] = []
        reason = ""
        started = time.perf_counter()
        try:
            async with asyncio.timeout(slice_s):
                candidates = await source.candidates(context, context.query.page_size)
        except TimeoutError:
            reason = _late(source.asks, slice_s)
        except Exception as error:  # noqa: BLE001 - a fault of one source must not cost the user the feed
            reason = _reason(source, error)
        return self._traced(source, context, started, candidates, reason)

    def _traced(
        self,
        source: Source,
        context: FeedContext,
        started: float,
        candidates: list[Candidate],
        reason: str = "",
    ) -> tuple[list[Candidate], SourceTrace]:
        """What a source answered, noted; a reason says why it did not."""
        if reason:
            metrics.failures.labels(source.name).inc()
            context.failed.add(source.source)
            context.degradations.append(Degradation(source.source, reason))
        elapsed_s = time.perf_counter() - started
        metrics.labelled(metrics.stage_seconds, source.name).observe(elapsed_s)
        return candidates, SourceTrace(source.source, len(candidates), elapsed_s, reason)

    def _slice_s(self, context: FeedContext) -> float:
        return min(self._source_deadline_s, _STEP_SHARE * context.remaining_s)

    def _sift(
        self, context: FeedContext, proposed: list[Candidate]
    ) -> tuple[list[Candidate], list[FilterTrace]]:
        """What is left of the candidates, best first within each source, and what each filter did."""
        candidates, traces = self._filter(context, proposed)
        return self._stages.scorer.score(context, candidates), traces

    def _filter(
        self, context: FeedContext, candidates: list[Candidate]
    ) -> tuple[list[Candidate], list[FilterTrace]]:
        traces = []
        for filter_ in self._stages.filters:
            keeps = filter_.keeps(context, candidates)
            kept = candidates if keeps is None else list(compress(candidates, keeps))
            traces.append(FilterTrace(filter_.name, len(kept), len(candidates) - len(kept)))
            candidates = kept
        return candidates, traces

    def _apply(self, page: FeedPage) -> None:
        for effect in self._stages.side_effects:
            try:
                left = effect.apply(page)
            except Exception as error:  # noqa: BLE001 - a fault of one must not keep the others from what they do
                _failed(effect, error)
                continue
            if left is not None:
                task = asyncio.create_task(_finish(effect, left))
                self._running.add(task)
                task.add_done_callback(self._running.discard)


def _reason(source: Source, error: Exception) -> str:
    """Why a source does not answer, for whoever reads the page; the log tells more of a fault."""
    if isinstance(error, KeekError):
        return str(error)
    logger.error("source %s failed", source.name, exc_info=error)
    return "internal error"


def _both(first: FilterTrace, second: FilterTrace) -> FilterTrace:
    """What one filter did, in two parts."""
    kept, removed = first.kept_count + second.kept_count, first.removed_count + second.removed_count
    return FilterTrace(first.name, kept, removed)


def _late(asked: str, slice_s: float) -> str:
    return f"{asked}: deadline of {slice_s * 1000:.0f} ms exceeded"


def _degrade(context: FeedContext, reason: str) -> None:
    context.degradations.append(Degradation(FeedSource.PERSONALISED, reason))


def _name_replacements(context: FeedContext, selection: Selection) -> None:
    """Says for each source that failed which others filled more slots than were theirs."""
    gained = [share.source for share in selection.shares if share.served_count > share.quota_count]
    for degradation in context.degradations:
        if degradation.source in context.failed:
            degradation.replaced_by = [source for source in gained if source != degradation.source]


async def _finish(effect: SideEffect, left: Coroutine[Any, Any, None]) -> None:
    try:
        await left
    except Exception as error:  # noqa: BLE001 - see `_failed`
        _failed(effect, error)


def _failed(effect: SideEffect, error: Exception) -> None:
    """The page has long been shown: the log tells of it."""
    metrics.failures.labels(effect.name).inc()
    if isinstance(error, KeekError):
        logger.warning("side effect %s failed: %s", effect.name, error)
    else:
        logger.error("side effect %s failed", effect.name, exc_info=error)
