"""Which requests may run on the event loop: only those of models that proved quick there, and never for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kserve_wasm.guest.pace import INLINE_SECONDS, Company, Pace

QUICK, SLOW = INLINE_SECONDS / 4, INLINE_SECONDS * 50
SHAPES = ((1, 4),)


def trials(pace: Pace, requests: int, seconds: float) -> int:
    """How many of the requests are tried on the loop, by a model whose requests all take so long."""
    tried = 0
    for _ in range(requests):
        if pace.may_run_inline(SHAPES):
            tried += 1
            pace.ran_inline(seconds)
        else:
            pace.ran_on_thread(seconds, SHAPES)
    return tried


def test_a_quick_model_soon_runs_on_the_loop_and_stays_there() -> None:
    assert trials(Pace(), 1000, QUICK) >= 990


def test_shapes_that_were_not_seen_go_to_a_thread_first() -> None:
    """A few bytes can ask for much: how large a product of matrices is, say, is all in the shapes."""
    pace = Pace()
    trials(pace, 100, QUICK)
    assert pace.may_run_inline(SHAPES)
    assert not pace.may_run_inline(((1, 4), (1_000_000, 0)))
    for size in range(1000):
        pace.ran_on_thread(QUICK, ((size,),))
    assert len(pace._quick) <= 256


def test_a_slow_model_is_never_tried_on_the_loop() -> None:
    """Its threads' times alone show that it is not worth a try."""
    assert trials(Pace(), 10_000, SLOW) == 0


def test_threads_that_wait_for_the_interpreter_lock_do_not_keep_a_quick_model_off_the_loop() -> None:
    """Under load a thread's time is many times what the request needs; one of them now and then is not."""
    pace = Pace()
    for turn in range(300):
        if pace.may_run_inline(SHAPES):
            break
        pace.ran_on_thread(QUICK if turn % 50 == 7 else 20 * INLINE_SECONDS, SHAPES)
    assert pace.may_run_inline(SHAPES)


def test_a_model_that_deceives_is_tried_ever_more_rarely() -> None:
    """Quick on a thread, slow on the loop: at most some ten tries in a hundred thousand requests."""
    pace = Pace()
    tried = 0
    for _ in range(100_000):
        if pace.may_run_inline(SHAPES):
            tried += 1
            pace.surprised()
        else:
            pace.ran_on_thread(QUICK, SHAPES)
    assert 1 <= tried <= 14


def test_a_model_that_becomes_slow_leaves_the_loop() -> None:
    pace = Pace()
    trials(pace, 100, QUICK)
    assert pace.may_run_inline(SHAPES)
    left = 0
    while pace.may_run_inline(SHAPES):
        pace.ran_inline(2 * INLINE_SECONDS)
        left += 1
    assert left <= 10


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 60)), max_size=300))
def test_no_sequence_of_times_breaks_it(times: list[tuple[bool, float]]) -> None:
    """Whatever happens, a surprise keeps the next requests off the loop."""
    pace = Pace()
    for surprise, seconds in times:
        if pace.may_run_inline(SHAPES):
            if surprise:
                pace.surprised()
                assert not pace.may_run_inline(SHAPES)
            else:
                pace.ran_inline(seconds)
        else:
            pace.ran_on_thread(seconds, SHAPES)


def test_requests_that_come_alone_do_not_wait_for_others() -> None:
    company = Company()
    for _ in range(32):
        assert company.expected()
        company.came(1)
    assert not any(company.expected() for _ in range(1024))
    assert company.expected()


def test_requests_in_company_wait_for_each_other() -> None:
    company = Company()
    for turn in range(1000):
        assert company.expected()
        company.came(2 if turn % 31 == 0 else 1)
