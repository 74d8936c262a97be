"""Events wait in a bounded line, the oldest going first."""

from __future__ import annotations

import threading

from greenq.events.dispatcher import MOST_WAITING, Dispatcher
from greenq.wire.events import Event


def numbers(events: list[Event]) -> list[int]:
    return [event["number"] for event in events]


def test_events_come_out_as_they_went_in() -> None:
    line = Dispatcher("w@h", tasks=True)
    for number in range(5):
        line.note("task-x", {"number": number})
    assert numbers(line.take(2)) == [0, 1]
    assert numbers(line.take(10)) == [2, 3, 4]
    assert line.take(10) == [] and line.lost == 0


def test_beyond_the_bound_the_oldest_go_and_are_counted() -> None:
    line = Dispatcher("w@h", tasks=True)
    for number in range(MOST_WAITING + 7):
        line.note("task-x", {"number": number})
    assert (len(line), line.lost) == (MOST_WAITING, 7)
    assert numbers(line.take(1)) == [7]


def test_what_could_not_be_sent_goes_first_again_as_far_as_there_is_room() -> None:
    line = Dispatcher("w@h", tasks=True)
    for number in range(4):
        line.note("task-x", {"number": number})
    taken = line.take(2)
    line.put_back(taken)
    assert numbers(line.take(4)) == [0, 1, 2, 3]
    for number in range(MOST_WAITING - 1):
        line.note("task-x", {"number": number})
    line.put_back(taken)
    assert (len(line), line.lost) == (MOST_WAITING, 1)
    assert numbers(line.take(2)) == [1, 0]


def test_threads_that_note_at_once_lose_none() -> None:
    line = Dispatcher("w@h", tasks=True)
    threads = [
        threading.Thread(target=lambda: [line.note("task-x", {"number": n}) for n in range(1000)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(line.take(MOST_WAITING))) == sorted(list(range(1000)) * 8)
    assert line.lost == 0
