"""Frames on the pipe of a child, and the page it shares with its parent."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenq.exceptions import ColdStop, HardTimeLimit, Killed, SoftTimeLimitExceeded
from greenq.pools._prefork import board as boards
from greenq.pools._prefork.board import BYTES, MOST_CHILDREN, Board, Wanted
from greenq.pools._prefork.endings import as_ending, as_numbers
from greenq.pools._prefork.frames import HEAD, Frame, FrameReader, Kind, frame

NUMBERS = st.integers(0, 2**64 - 1)
FRAMES = st.lists(
    st.tuples(
        st.sampled_from([int(kind) for kind in Kind]),
        NUMBERS,
        st.one_of(st.just(b""), st.binary(max_size=40), st.integers(0, 5000).map(bytes)),
    ),
    max_size=20,
)


def bytes_of(frames: list[Frame]) -> bytes:
    return b"".join(frame(Kind(kind), number, payload) for kind, number, payload in frames)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(places)]


@given(FRAMES, st.lists(st.integers(0, 10**6), max_size=30))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(frames: list[Frame], cuts: list[int]) -> None:
    reader = FrameReader()
    found = [each for piece in pieces(bytes_of(frames), cuts) for each in reader.feed(piece)]
    assert found == frames


@given(FRAMES)
def test_a_stream_may_come_byte_by_byte(frames: list[Frame]) -> None:
    reader = FrameReader()
    short = [(kind, number, payload[:100]) for kind, number, payload in frames]
    data = bytes_of(short)
    assert [each for n in range(len(data)) for each in reader.feed(data[n : n + 1])] == short


@given(FRAMES, st.lists(st.integers(0, 10**6), max_size=10), st.integers(1, HEAD.size + 100))
def test_a_frame_is_given_out_as_soon_as_it_is_whole(frames: list[Frame], cuts: list[int], missing: int) -> None:
    """What was written before a child died counts, whatever it was in the middle of."""
    data = bytes_of(frames)
    rest = frame(Kind.DONE, 1, bytes(200))[:-missing]
    reader = FrameReader()
    assert [each for piece in pieces(data + rest, cuts) for each in reader.feed(piece)] == frames


@pytest.mark.parametrize("piece", [1 << 16, (1 << 18) - 1, 1 << 18])
def test_eight_megabytes_are_put_together_once_and_not_at_each_read(piece: int) -> None:
    load = os.urandom(8 << 20)
    data = frame(Kind.READY) + frame(Kind.DONE, 7, load) + frame(Kind.DONE, 8, b"next") + frame(Kind.DONE, 9, load)
    reader = FrameReader()
    began = time.process_time()
    found = [each for at in range(0, len(data), piece) for each in reader.feed(data[at : at + piece])]
    spent = time.process_time() - began
    assert found == [(Kind.READY, 0, b""), (Kind.DONE, 7, load), (Kind.DONE, 8, b"next"), (Kind.DONE, 9, load)]
    # Joined at each of 64 or more reads it would be half a gigabyte to copy.
    assert spent < 0.5


# The page.


@pytest.fixture
def sides() -> object:
    """The page as a parent and a child see it."""
    fd = boards.make_file()
    parent, child = Board(fd), Board(fd)
    os.close(fd)
    yield parent, child
    parent.close()
    child.close()


def test_each_side_sees_at_once_what_the_other_has_written(sides: tuple[Board, Board]) -> None:
    parent, child = sides
    for index in (0, 1, 2, MOST_CHILDREN - 1):
        child.start(index, 2**63 + index)
        parent.want(index, 5, Wanted(3, 2**60))
    for index in (0, 1, 2, MOST_CHILDREN - 1):
        assert parent.started(index) == 2**63 + index
        assert child.wanted(index, 5) == (3, 2**60)
        assert child.wanted(index, 4) is None
        assert child.wanted(index, 6) is None


def test_clearing_one_place_leaves_its_neighbours(sides: tuple[Board, Board]) -> None:
    parent, child = sides
    for index in (1, 2, 3):
        child.start(index, index)
        parent.want(index, index, Wanted(1, index))
    parent.clear(2)
    assert [parent.started(index) for index in (1, 2, 3)] == [1, 0, 3]
    assert [child.wanted(index, index) for index in (1, 2, 3)] == [(1, 1), None, (1, 3)]


def test_a_new_ending_for_the_same_task_takes_the_place_of_the_old(sides: tuple[Board, Board]) -> None:
    parent, child = sides
    parent.want(1, 5, Wanted(1, 10))
    parent.want(1, 5, Wanted(2, 20))
    assert child.wanted(1, 5) == (2, 20)


def test_a_page_has_one_size_however_many_use_it(sides: tuple[Board, Board]) -> None:
    assert BYTES == MOST_CHILDREN * 32
    with pytest.raises(IndexError):
        sides[0].start(MOST_CHILDREN, 1)


@given(st.floats(0, 10**9, allow_nan=False))
def test_the_seconds_of_a_limit_cross_the_page_to_the_microsecond(seconds: float) -> None:
    for kind in (SoftTimeLimitExceeded, HardTimeLimit):
        ending = as_ending(as_numbers(kind(seconds)))
        assert type(ending) is kind
        assert abs(ending.args[0] - seconds) <= max(1e-6, seconds * 1e-9)


@given(st.integers(0, 64))
def test_the_other_endings_cross_the_page(number: int) -> None:
    killed = as_ending(as_numbers(Killed(number)))
    assert (type(killed), killed.args) == (Killed, (number,))
    assert type(as_ending(as_numbers(ColdStop("now")))) is ColdStop
