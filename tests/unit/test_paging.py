"""Page tokens."""

import base64
import struct
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keek_server.errors import InvalidArgumentError
from keek_server.feed.paging import SESSION_LIMIT, PageToken
from keek_server.rpc.tokens import decode_offset, decode_position, decode_token, encode_token


@given(
    user_id=st.text(min_size=1, max_size=40),
    release_id=st.text(max_size=30),
    served=st.lists(st.integers(0, 2**64 - 1), max_size=50),
)
def test_a_token_gives_back_what_it_carries(user_id: str, release_id: str, served: list[int]) -> None:
    token = PageToken(user_id, release_id, tuple(served))
    assert PageToken.decode(token.encode(), user_id) == token


def test_the_longest_token_fits_the_contract() -> None:
    assert len(PageToken("u", "20260101T000000Z-123456", tuple(range(SESSION_LIMIT))).encode()) <= 16384


@pytest.mark.parametrize("token", ["", "x", "!!!", "AAAA", "é", "a" * 500])
def test_garbage_is_refused_by_name(token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        PageToken.decode(token, "u")


@pytest.mark.parametrize("count", [SESSION_LIMIT, SESSION_LIMIT + 200])
def test_a_made_up_token_of_a_session_that_has_ended_is_refused(count: int) -> None:
    token = PageToken("u", "r", tuple(range(count))).encode()
    with pytest.raises(InvalidArgumentError, match="page_token: is not a token of this service"):
        PageToken.decode(token, "u")


def test_a_session_may_lack_one_video() -> None:
    token = PageToken("u", "r", tuple(range(SESSION_LIMIT - 1)))
    assert PageToken.decode(token.encode(), "u") == token


def test_a_made_up_token_whose_release_is_no_text_is_refused() -> None:
    body = base64.urlsafe_b64decode(PageToken("u", "r", (1,)).encode())[:-4].replace(b"\1r", b"\1\xff")
    token = base64.urlsafe_b64encode(body + struct.pack("<I", zlib.crc32(body))).decode()
    with pytest.raises(InvalidArgumentError, match="page_token: is not a token of this service"):
        PageToken.decode(token, "u")


def test_every_damaged_byte_is_noticed() -> None:
    token = PageToken("u", "r", (1, 2, 3)).encode()
    for place in range(len(token)):
        damaged = token[:place] + ("A" if token[place] != "A" else "B") + token[place + 1 :]
        try:
            survived = PageToken.decode(damaged, "u")
        except InvalidArgumentError:
            continue
        # The last character of base64 has bits that carry nothing.
        assert survived == PageToken("u", "r", (1, 2, 3))


def test_another_users_token_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="another user"):
        PageToken.decode(PageToken("u1", "r", ()).encode(), "u2")


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_positions_of_plain_lists_survive(position: str) -> None:
    assert decode_token(encode_token(position)) == position


@pytest.mark.parametrize("token", ["é", "不", "a", "!!!!", "_w==", "////"])
@pytest.mark.parametrize("decode", [decode_token, decode_position, lambda token: decode_offset(token, 100)])
def test_garbage_for_a_plain_list_is_refused_by_name(decode: Callable[[str], object], token: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token: is not a token of this service"):
        decode(token)


@pytest.mark.parametrize("position", ["\0", "v1\0", "v\0001"])
def test_a_position_that_no_database_takes_is_refused_by_name(position: str) -> None:
    with pytest.raises(InvalidArgumentError, match="page_token"):
        decode_token(encode_token(position))
