"""Views of the beginning of a buffer that is written anew again and again."""

from hypothesis import given
from hypothesis import strategies as st

from atoll.ipc.views import Views

MOST, SIZE = 8, 16


@given(st.lists(st.tuples(st.integers(0, SIZE), st.binary(min_size=SIZE, max_size=SIZE))))
def test_a_copy_is_what_the_buffer_has_now(messages: list[tuple[int, bytes]]) -> None:
    memory = bytearray(SIZE)
    views = Views(memoryview(memory), MOST)
    for length, content in messages:
        memory[:] = content
        assert views.copy(length) == content[:length]


def test_a_view_is_cut_when_it_is_first_asked_for_and_kept() -> None:
    views = Views(memoryview(bytearray(b"0123456789")), MOST)
    assert views.kept == [None] * MOST
    assert views.cut(3) is views.kept[3]
    assert [length for length, view in enumerate(views.kept) if view is not None] == [3]
    assert views.copy(MOST) == b"01234567", "longer ones are not kept"
    assert len(views.kept) == MOST
