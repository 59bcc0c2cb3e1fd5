"""How far back rows are kept."""

from keek_server.clock import now_us
from keek_server.storage.partitions import month_start_us, next_month_us
from keek_server.storage.retention import Retention

DAY_US = 24 * 3600 * 1_000_000
JANUARY, FEBRUARY, MARCH = 1_767_225_600_000_000, 1_769_904_000_000_000, 1_772_323_200_000_000


async def test_it_prunes_piece_by_piece_until_nothing_is_left() -> None:
    asked: list[int] = []

    async def prune(before_us: int) -> bool:
        asked.append(before_us)
        return len(asked) < 3

    await Retention({prune: 40}).prune()
    assert len(asked) == 3
    assert abs(asked[0] - (now_us() - 40 * DAY_US)) < DAY_US
    assert len(set(asked)) == 1


async def test_what_is_kept_for_ever_is_never_asked() -> None:
    async def prune(_before_us: int) -> bool:
        raise AssertionError

    await Retention({prune: None}).prune()


def test_months_begin_where_the_calendar_says() -> None:
    assert month_start_us(JANUARY) == JANUARY
    assert month_start_us(FEBRUARY - 1) == JANUARY
    assert next_month_us(JANUARY) == FEBRUARY
    assert next_month_us(FEBRUARY) == MARCH
