"""The launcher's event loop."""

import os
import time

import pytest

from claudebox.sandbox import events


@pytest.fixture
def loop():
    made = events.Loop()
    yield made
    made.close()


def test_deadlines_come_in_order_of_time_and_not_when_cancelled(loop):
    seen = []
    loop.call_in(0.03, lambda: (seen.append("late"), loop.stop()))
    loop.call_in(0.01, lambda: seen.append("early"))
    cancelled = loop.call_in(0.02, lambda: seen.append("never"))
    loop.cancel(cancelled)
    loop.cancel(cancelled)
    loop.cancel(None)
    begin = time.monotonic()
    loop.run()
    assert seen == ["early", "late"]
    assert 0.03 <= time.monotonic() - begin < 1


def test_a_descriptor_is_called_back_until_it_is_removed(loop):
    reader, writer = os.pipe()
    seen = []

    def read(mask):
        seen.append((os.read(reader, 1), mask))
        if len(seen) == 3:
            loop.remove(reader)
            loop.remove(reader)
            loop.call_in(0.02, loop.stop)

    loop.add(reader, read)
    os.write(writer, b"abcd")
    loop.run()
    assert seen == [(b"a", events.READ), (b"b", events.READ), (b"c", events.READ)]
    os.close(reader)
    os.close(writer)


def test_an_event_of_a_closed_descriptor_does_not_reach_the_next_owner_of_its_number(loop):
    first, first_end = os.pipe()
    second, second_end = os.pipe()
    wrong = []

    def replace(other):
        loop.remove(other)
        os.dup2(idle, other)
        loop.add(other, wrong.append)
        loop.remove(other)
        loop.add(other, wrong.append)
        loop.call_in(0.02, loop.stop)

    idle, idle_end = os.pipe()
    loop.add(first, lambda _: replace(second))
    loop.add(second, lambda _: replace(first))
    os.write(first_end, b"x")
    os.write(second_end, b"x")
    loop.run()
    assert wrong == []
    for each in (first, first_end, second, second_end, idle, idle_end):
        os.close(each)


def test_an_exception_of_a_callback_reaches_the_caller_of_run(loop):
    loop.call_in(0, lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loop.run()


def test_a_loop_without_deadlines_uses_no_time(loop):
    reader, writer = os.pipe()
    loop.add(reader, lambda _: loop.stop())
    pid = os.fork()
    if pid == 0:
        time.sleep(0.5)
        os.write(writer, b"x")
        os._exit(0)
    before = time.process_time()
    loop.run()
    assert time.process_time() - before < 0.01
    os.waitpid(pid, 0)
    os.close(reader)
    os.close(writer)
