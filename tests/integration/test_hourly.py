"""The hourly job: whatever ends it, the next round goes on where it was, and does nothing twice."""

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from keek_server.errors import SetupError, UnavailableError
from keek_server.releases.manifest import GateResult
from keek_training.gates.verdict import RefusedError
from keek_training.hourly.commands import loop
from keek_training.hourly.job import MOST_TRIES, Outcome, run_round
from keek_training.hourly.lock import alone
from keek_training.hourly.state import STATE_FILE, LogRange, Refusal, Round, State, Step
from keek_training.publishing.publish import HeldUpError

NEW = LogRange(log_id="log", after_seq=10, last_seq=20)
REFUSED = RefusedError(
    [GateResult(name="recall", value=0.5, bound=0.95, comparison=">=", passed=False, detail="of the index")]
)


class KilledError(BaseException):
    """Stands in for kill -9: nothing in the job may catch it."""


@dataclass(slots=True)
class Recorder:
    """Steps that note what they were asked, and are idempotent as the real ones are."""

    done: set[str] = field(default_factory=set)
    """What was really done, which outlives a process."""
    calls: list[str] = field(default_factory=list)
    planned: Round | str = "nothing new"
    base: str | None = "monday"
    fails: dict[str, BaseException] = field(default_factory=dict)
    """By the step, and `after` it where the step had done its work already."""
    refusals: list[Refusal | None] = field(default_factory=list)

    def plan(self, refusal: Refusal | None) -> Round | str:
        self._do("plan", "")
        self.refusals.append(refusal)
        return self.planned

    def is_current(self, current: Round) -> bool:
        return current.base == self.base

    def train(self, current: Round) -> None:
        self._do("train", current.run)

    def export(self, current: Round) -> None:
        self._do("export", current.run)

    def rank(self, current: Round) -> None:
        self._do("rank", current.run)

    def publish(self, current: Round) -> str:
        self._do("publish", current.run)
        return f"release of {current.run}"

    def feeds(self) -> int:
        self._do("feeds", "")
        return 3

    def clean_up(self) -> None:
        self._do("clean up", "")

    def _do(self, step: str, run: str) -> None:
        self.calls.append(step)
        if (error := self.fails.pop(step, None)) is not None:
            raise error
        self.done.add(f"{step} {run}")
        if (error := self.fails.pop(f"after {step}", None)) is not None:
            raise error


def round_of(run: str) -> Round:
    return Round(run=run, base="monday", new=NEW)


STEPS = [step.value for step in Step]
WHOLE = ["plan", *STEPS, "clean up"]


def test_a_round_does_every_step_once_and_leaves_nothing_under_way(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"))
    assert run_round(tmp_path, steps) == Outcome("release of a", "", 3)
    assert steps.calls == WHOLE
    assert State.load(tmp_path) == State()


@pytest.mark.parametrize("moment", ["", "after "])
@pytest.mark.parametrize("step", STEPS)
def test_a_round_that_is_killed_in_a_step_goes_on_with_that_step(
    tmp_path: Path, step: str, moment: str
) -> None:
    steps = Recorder(planned=round_of("a"), fails={moment + step: KilledError()})
    with pytest.raises(KilledError):
        run_round(tmp_path, steps)
    steps.calls.clear()
    steps.planned = round_of("b")
    assert run_round(tmp_path, steps) == Outcome("release of a", "", 3)
    assert steps.calls == [*STEPS[STEPS.index(step) :], "clean up"]
    assert {"train a", "export a", "publish a"} <= steps.done
    assert State.load(tmp_path) == State()


def test_nothing_new_still_refreshes_the_cached_feeds(tmp_path: Path) -> None:
    steps = Recorder(planned="7 new interactions")
    assert run_round(tmp_path, steps) == Outcome("", "7 new interactions", 3)
    assert steps.calls == ["plan", "feeds"]


def test_a_refused_model_is_remembered_and_the_next_round_begins_anew(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("bad"), fails={"publish": REFUSED})
    with pytest.raises(RefusedError, match="gate recall"):
        run_round(tmp_path, steps)
    # The release that serves goes on, and its cached feeds must not run out.
    assert steps.calls[-2:] == ["publish", "feeds"]
    steps.planned = round_of("good")
    assert run_round(tmp_path, steps).release_id == "release of good"
    assert [each and (each.run, each.last_seq) for each in steps.refusals] == [None, ("bad", 20)]
    run_round(tmp_path, Recorder())
    assert State.load(tmp_path).refusal is None


def test_refusals_of_a_training_and_of_an_index_are_remembered_side_by_side(tmp_path: Path) -> None:
    trains = round_of("bad")
    nothing = NEW.model_copy(update={"last_seq": NEW.after_seq})
    index = Round(run="monday", base="monday", new=nothing, replaces="r1", catalogue_seq=7, step=Step.RANK)

    def refusal_after(planned: Round, *, refused: bool) -> tuple[str, int, int] | None:
        steps = Recorder(planned=planned, fails={"publish": REFUSED} if refused else {})
        with pytest.raises(RefusedError) if refused else nullcontext():
            run_round(tmp_path, steps)
        left = State.load(tmp_path).refusal
        return left and (left.run, left.last_seq, left.catalogue_seq)

    assert refusal_after(trains, refused=True) == ("bad", 20, 0)
    assert refusal_after(index, refused=True) == ("bad", 20, 7)
    later = index.model_copy(update={"catalogue_seq": 9})
    assert refusal_after(later, refused=False) == ("bad", 20, 7)
    worse = trains.model_copy(update={"run": "worse", "new": NEW.model_copy(update={"last_seq": 30})})
    assert refusal_after(worse, refused=True) == ("worse", 30, 7)
    other = index.model_copy(update={"new": nothing.model_copy(update={"log_id": "of another log"})})
    assert refusal_after(other, refused=True) == ("monday", 10, 7)
    assert refusal_after(trains, refused=False) is None


def test_what_fails_again_and_again_is_given_up(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"))
    for _ in range(MOST_TRIES):
        steps.fails = {"export": SetupError("no room left")}
        with pytest.raises(SetupError, match="no room left"):
            run_round(tmp_path, steps)
    assert steps.calls.count("train") == 1
    steps.planned = round_of("b")
    assert run_round(tmp_path, steps).release_id == "release of b"
    assert steps.refusals[-1] is not None
    assert "export was begun 3 times" in steps.refusals[-1].reason


def test_a_round_whose_base_was_rolled_back_is_dropped(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"), fails={"after train": KilledError()})
    with pytest.raises(KilledError):
        run_round(tmp_path, steps)
    steps.base, steps.planned = "sunday", Round(run="b", base="sunday", new=NEW)
    assert run_round(tmp_path, steps).release_id == "release of b"
    assert "publish a" not in steps.done


def test_a_round_that_may_not_publish_now_waits_and_the_cached_feeds_are_refreshed(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"))
    for _ in range(MOST_TRIES + 1):
        steps.calls.clear()
        steps.fails = {"publish": HeldUpError("release x is being tried")}
        assert run_round(tmp_path, steps) == Outcome("", "release x is being tried", 3)
        assert steps.calls[-2:] == ["publish", "feeds"]
    assert run_round(tmp_path, steps) == Outcome("release of a", "", 3)
    assert steps.refusals == [None]


@pytest.mark.parametrize("step", ["plan", *STEPS[:-1]])
def test_a_round_that_fails_refreshes_the_cached_feeds(tmp_path: Path, step: str) -> None:
    steps = Recorder(planned=round_of("a"), fails={step: SetupError("no"), "feeds": UnavailableError("down")})
    with pytest.raises(SetupError, match=r"^no$"):
        run_round(tmp_path, steps)
    assert steps.calls[-2:] == [step, "feeds"]


def test_a_failure_to_write_feeds_keeps_the_release(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"), fails={"feeds": UnavailableError("Redis is down")})
    with pytest.raises(UnavailableError):
        run_round(tmp_path, steps)
    assert steps.calls.count("feeds") == 1
    assert run_round(tmp_path, steps) == Outcome("release of a", "", 3)
    assert steps.calls.count("publish") == 1


def test_a_damaged_state_is_begun_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / STATE_FILE).write_text('{"round": {"run"')
    assert run_round(tmp_path, Recorder(planned=round_of("a"))).release_id == "release of a"
    assert "begins anew" in caplog.text


def test_the_second_job_is_told_who_does_the_first(tmp_path: Path) -> None:
    with (
        alone(tmp_path),
        pytest.raises(SetupError, match=rf"^process {os.getpid()} on .* does the hourly job"),
    ):
        run_round(tmp_path, Recorder())
    run_round(tmp_path, Recorder())


def test_a_killed_job_gives_the_lock_back(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from keek_training.hourly.lock import alone\n"
        "with alone(Path(sys.argv[1])):\n    print('holds', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"holds\n"
        with pytest.raises(SetupError, match=f"process {holder.pid} on "):
            run_round(tmp_path, Recorder())
        holder.kill()
    run_round(tmp_path, Recorder())


def test_the_loop_goes_on_after_a_failed_round(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counted = tmp_path / "rounds"
    program = (
        f"open({str(counted)!r}, 'a').write('.'); raise SystemExit(len(open({str(counted)!r}).read()) < 3)"
    )

    def stop() -> None:
        while not counted.exists() or len(counted.read_text()) < 3:
            threading.Event().wait(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            loop([sys.executable, "-c", program], 0.05)
    finally:
        signal.signal(signal.SIGTERM, before)
        thread.join()
    assert "exit code 1" in caplog.text


def test_a_round_that_begins_when_the_loop_is_stopped_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """The signal comes when there is a process, and before the loop has it."""

        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            begun.append(self)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(KeyboardInterrupt):
            loop([sys.executable, "-c", "import time; time.sleep(600)"], 600.0)
        assert begun[0].returncode == -signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        for process in begun:
            process.kill()
            process.wait()


def test_the_state_file_is_plain_json(tmp_path: Path) -> None:
    steps = Recorder(planned=round_of("a"), fails={"export": SetupError("full")})
    with pytest.raises(SetupError):
        run_round(tmp_path, steps)
    state = json.loads((tmp_path / STATE_FILE).read_text())
    assert (state["round"]["run"], state["round"]["step"], state["round"]["tries"]) == ("a", "export", 1)
