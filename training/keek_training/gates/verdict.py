"""The verdict: a release that any gate refuses does not serve, unless somebody says why it should."""

import logging
from collections.abc import Sequence
from typing import Final

from keek_server.errors import SetupError
from keek_server.releases.manifest import GateResult

logger = logging.getLogger(__name__)

STRUCTURAL: Final = frozenset({"size_mb", "format", "external_data", "opset", "contract", "weights", "runs"})
"""Gates that no reason opens: what fails them could not serve, or could do harm."""

_WORDS = {"<=": "at most", ">=": "at least"}


class RefusedError(SetupError):
    """Gates refuse a release."""

    def __init__(self, results: Sequence[GateResult]) -> None:
        """
        Args:
            results: Of all gates that were measured; those that failed are named in the message.
        """
        self.results = tuple(results)
        super().__init__("; ".join(f"refused by {describe(result)}" for result in failures(results)))


def failures(results: Sequence[GateResult]) -> list[GateResult]:
    """Those that did not pass."""
    return [result for result in results if not result.passed]


def describe(result: GateResult) -> str:
    """One line: the gate, its value, what is asked for, and the detail."""
    value = "not measured" if result.value is None else f"value {number(result.value)}"
    asked = f"{_WORDS[result.comparison]} {number(result.bound)} is asked for"
    return f"gate {result.name}: {value}, {asked}: {result.detail}"


def number(value: float) -> str:
    """Whole numbers as they are, others with two decimals or, where those say nothing, three digits."""
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.2f}" if 0.01 <= abs(value) < 1e4 else f"{value:.2e}"


def refuse_unless_passed(results: Sequence[GateResult], forced_reason: str = "") -> None:
    """Lets a release go on.

    Args:
        results: Of the gates so far.
        forced_reason: Why it goes on although gates refuse it; empty when it must not.

    Raises:
        RefusedError: When a gate failed and no reason is given, or the gate is a structural one.
    """
    refused = failures(results)
    if any(result.name in STRUCTURAL for result in refused) or (refused and not forced_reason.strip()):
        raise RefusedError(results)
    for result in refused:
        logger.warning("forced (%s) although refused by %s", forced_reason.strip(), describe(result))
