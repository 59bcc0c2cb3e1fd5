"""Settings as people write them."""

import pytest
from pydantic import ValidationError

from keek_server.interactions.kinds import InteractionKind
from keek_server.settings import Settings


@pytest.mark.parametrize("given", ['{"like": 1.0, "Share": 2}', '{"2": 1.0, "4": 2.0}'])
def test_kinds_of_interactions_are_weighed_by_name(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEK_INTERACTION_WEIGHTS", given)
    assert Settings().interaction_weights == {InteractionKind.LIKE: 1.0, InteractionKind.SHARE: 2.0}


def test_a_kind_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEK_INTERACTION_WEIGHTS", '{"likes": 1.0}')
    with pytest.raises(ValidationError, match="interaction_weights"):
        Settings()
