"""What an error says can be told: to any client, whatever the text is and whoever made it."""

from urllib.parse import quote

import pytest
from dormouse_core.errors import LONGEST, InvalidArgument, Unavailable, tellable, text_of
from dormouse_core.plain import plain
from hypothesis import given
from hypothesis import strategies as st


@given(st.text(st.characters(exclude_categories=()), max_size=6000) | st.text("☃", max_size=3000) | st.text("%", max_size=3000))
def test_a_text_fits_a_status_and_is_utf_8(text: str) -> None:
    told = InvalidArgument(text).message
    assert len(quote(told, safe=" !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~")) <= LONGEST
    assert tellable(told) == told
    written = plain(text, keep="\n")
    assert told == written or (told.endswith("...") and written.startswith(told[:-3]) and len(told) > LONGEST // 12 - 4)


def test_a_short_text_is_left_as_it_is() -> None:
    assert str(Unavailable("x: ä found, 100% is allowed")) == "x: ä found, 100% is allowed"
    assert InvalidArgument("a" * LONGEST).message == "a" * LONGEST
    assert InvalidArgument("\ud800 is half a character").message == "\\ud800 is half a character"


@pytest.mark.parametrize("base", [Exception, BaseException])
def test_an_exception_that_cannot_be_written(base: type[BaseException]) -> None:
    class Mute(base):  # type: ignore[misc, valid-type]
        def __str__(self) -> str:
            raise RuntimeError("no")

    assert text_of(ValueError("no luck")) == "ValueError: no luck"
    assert text_of(Mute()) == "Mute, which has no text: its __str__ raises"
