"""Makes the results of gates: what passes is decided here alone."""

import math

from keek_server.releases.manifest import GateResult

_LONGEST = 500


def at_most(name: str, value: float, bound: float, detail: str) -> GateResult:
    """Passes when `value <= bound`; a value that is not a number never does."""
    return _result(name, value, bound, detail, is_at_least=False)


def at_least(name: str, value: float, bound: float, detail: str) -> GateResult:
    """Passes when `value >= bound`; a value that is not a number never does."""
    return _result(name, value, bound, detail, is_at_least=True)


def failed(like: GateResult, detail: str) -> GateResult:
    """Nothing could be measured, and that is the candidate's fault."""
    return like.model_copy(update={"value": None, "passed": False, "detail": _line(detail)})


def not_measurable(like: GateResult, detail: str) -> GateResult:
    """There is nothing to compare with; that is nobody's fault."""
    return like.model_copy(update={"value": None, "passed": True, "detail": _line(detail)})


def _line(detail: str) -> str:
    """Models say some of it: one line of a bounded length, which no terminal takes for commands."""
    text = "".join(c if c.isprintable() else " " for c in detail)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _result(name: str, value: float, bound: float, detail: str, *, is_at_least: bool) -> GateResult:
    passed = value >= bound if is_at_least else value <= bound
    is_finite = math.isfinite(value)
    return GateResult(
        name=name,
        # JSON, and the databases that keep it, know neither infinity nor NaN.
        value=float(value) if is_finite else None,
        bound=float(bound),
        comparison=">=" if is_at_least else "<=",
        passed=bool(passed) and is_finite,
        detail=_line(detail if is_finite else f"{detail}; the value is {value}"),
    )
