"""The fair lock around the model, and decode steps of different callers in one pass: fair, exact, nobody waits long."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import SHORT, config, spying

from wim_kernel import AnswerToken, WimKernel
from wim_kernel.engines.local.decode import fair_lock
from wim_kernel.engines.local.decode.fair_lock import Account, FairLock
from wim_kernel.engines.local.rows.torch_rows import TorchRows

pytestmark = pytest.mark.slow

TEXTS = ["The gull sat on the mast." * 3, "Elsa Brandt owned the ship." * 3, "Rain fell all night." * 3]
OTHER = ["Fog lay on the harbour for nine nights." * 2, "Nobody sailed." * 4]
LONG = {
    "threshold": 0,
    "margin_style": "free",
    "margin_config": config(6, 6),
    "answer_config": config(60, 60),
}


@pytest.fixture(scope="module")
def kernel(tiny_model, smollm2):
    return WimKernel(tiny_model("llama"), smollm2[1])


# -- the fair lock ----------------------------------------------------------------------------------------------------


class Clock:
    """The lock's clock, which goes on only while somebody holds the lock and works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(fair_lock, "time", made)
    return made


class Caller(threading.Thread):
    """Works for some seconds of the clock again and again until a time, on one account or on a new one each time."""

    def __init__(
        self,
        lock: FairLock,
        clock: Clock,
        seconds: float,
        until: float,
        *,
        will_return: bool = False,
        fresh: bool = False,
    ) -> None:
        super().__init__(daemon=True)
        self.lock, self.clock, self.seconds, self.until = lock, clock, seconds, until
        self.will_return, self.fresh = will_return, fresh
        self.account, self.waits = Account(), []

    def run(self) -> None:
        while (begun := self.clock.now) < self.until:
            account = Account() if self.fresh else self.account
            with self.lock.held_by(account, will_return=self.will_return):
                self.waits.append(self.clock.now - begun)
                self.clock.now += self.seconds
        self.lock.wont_return(self.account)


def run_together(lock: FairLock, *callers: Caller) -> None:
    """Let the callers work, all of them from the beginning."""
    with lock:
        for caller in callers:
            caller.start()
        while len(lock._waiting) < len(callers):
            time.sleep(0.001)
    for caller in callers:
        caller.join(60)
        assert not caller.is_alive()


def test_fair_lock_grants_several_short_jobs_for_a_long_one(clock):
    lock = FairLock()
    long = Caller(lock, clock, 0.1, until=2)
    short = Caller(lock, clock, 0.01, until=2, will_return=True)
    run_together(lock, long, short)
    assert len(short.waits) > 5 * len(long.waits)  # about ten to one: the same time for both
    assert len(long.waits) >= 5
    assert sum(wait > 0.09 for wait in short.waits) <= len(long.waits) + 1  # not each time


def test_fair_lock_starves_nobody_while_newcomers_come(clock):
    lock = FairLock()
    long = Caller(lock, clock, 0.05, until=2)
    run_together(lock, long, *(Caller(lock, clock, 0.01, until=2, fresh=True) for _ in range(3)))
    assert len(long.waits) >= 5


def test_fair_lock_lets_a_newcomer_go_before_callers_who_had_more():
    lock, order = FairLock(), []

    def wait(name: str, account: Account) -> None:
        with lock.held_by(account):
            order.append(name)

    callers = {"long": Account(5.0), "longer": Account(9.0), "new": Account()}
    with lock:
        threads = [threading.Thread(target=wait, args=caller) for caller in callers.items()]
        for count, thread in enumerate(threads):
            thread.start()
            while len(lock._waiting) <= count:
                time.sleep(0.001)
    for thread in threads:
        thread.join(10)
    assert order == ["new", "long", "longer"]


def test_fair_lock_keeps_the_place_of_who_will_return():
    lock, short, order = FairLock(), Account(), []

    def wait_for_long() -> None:
        account = Account()
        account.virtual_time = 5.0  # has had much
        with lock.held_by(account):
            order.append("long")

    for leaves in (False, True):
        order.clear()
        thread = threading.Thread(target=wait_for_long)
        with lock.held_by(short, will_return=True):
            thread.start()
            while not lock._waiting:
                time.sleep(0.001)
            time.sleep(0.05)  # a grace period is 10 ms
        if leaves:
            lock.wont_return(short)
            thread.join(10)
        with lock.held_by(short):
            order.append("short")
        thread.join(10)
        assert order == (["long", "short"] if leaves else ["short", "long"])
    assert lock._waiting == []


def test_fair_lock_forgets_an_interrupted_waiter():
    lock = FairLock()

    class Interrupted(BaseException):
        pass

    def interrupt() -> bool:
        raise Interrupted

    with lock, pytest.raises(Interrupted):
        lock.acquire(Account(), unless=interrupt)
    assert lock._waiting == []
    assert not lock.acquire(Account(), unless=lambda: True)  # nothing left to do: not acquired
    with lock:
        pass


# -- together ---------------------------------------------------------------------------------------------------------


def after_some_tokens(reading, question, **options):
    """A stream that has begun to decode its answer, and what is left of it, to be run by a thread."""
    stream = reading.stream(question, **options)
    for event in stream:
        if isinstance(event, AnswerToken):
            break
    return lambda: list(stream)[-1].result


def rows(spy) -> list[int]:
    """Rows of each pass of one token a row."""
    return [batch.shape[0] for batch in spy.batches if batch.shape[1] == 1]


@pytest.mark.invariant(3)
@pytest.mark.parametrize("second", [TEXTS, OTHER], ids=["one reading", "two readings"])
def test_callers_that_come_at_different_times_share_passes(kernel, second):
    first_reading, second_reading = kernel.read(TEXTS), kernel.read(second)
    wanted = [first_reading.ask("Who owned it?", **LONG), second_reading.ask("How long was the fog?", **LONG)]
    with spying(kernel.model) as spy:
        first_reading.ask("Who owned it?", **LONG)
        second_reading.ask("How long was the fog?", **LONG)
    apart = len(rows(spy))
    rest = after_some_tokens(first_reading, "Who owned it?", **LONG)
    with spying(kernel.model) as spy, ThreadPoolExecutor(2) as threads:
        late = threads.submit(second_reading.ask, "How long was the fog?", **LONG)
        early = threads.submit(rest)
        found = [early.result(60), late.result(60)]
    assert [result.token_ids for result in found] == [result.token_ids for result in wanted]
    assert [margin.token_ids for margin in found[1].margins] == [m.token_ids for m in wanted[1].margins]
    assert len(rows(spy)) < 0.8 * apart  # 118 and some apart; some 65 if they meet at once
    assert 2 in rows(spy)


@pytest.mark.invariant(7)
def test_eight_callers_share_passes(kernel):
    questions = [f"Who owned ship number {number}?" for number in range(8)]
    reading = kernel.read(TEXTS)
    reading.prefill()
    wanted = [reading.ask(question, **LONG) for question in questions]
    with spying(kernel.model) as spy, ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda question: reading.ask(question, **LONG), questions))
    assert [result.token_ids for result in found] == [result.token_ids for result in wanted]
    assert [r.answer for r in found] == [r.answer for r in wanted]
    assert sum(rows(spy)) / len(rows(spy)) > 4  # rows of three margins or one answer, of each caller
    assert kernel.engine.batcher._sessions == []


def test_a_pass_has_no_more_rows_than_are_allowed(kernel, monkeypatch):
    monkeypatch.setattr(kernel.engine.batcher, "max_rows", 4)
    reading = kernel.read(TEXTS)
    reading.prefill()
    with spying(kernel.model) as spy, ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda number: reading.ask(f"Who owned ship {number}?", **LONG), range(6)))
    assert 1 < max(rows(spy)) <= 4


@pytest.mark.invariant(6)
def test_a_failed_shared_step_falls_back_to_single_steps(kernel, monkeypatch):
    step_together, failed = TorchRows.step_together, []

    def failing(self, steps, *, ahead=False):
        if len(steps) > 1:
            failed.append(len(steps))
            raise RuntimeError("out of something")
        return step_together(self, steps, ahead=ahead)

    reading = kernel.read(TEXTS)
    wanted = reading.ask("Who owned it?", **LONG)
    monkeypatch.setattr(TorchRows, "step_together", failing)
    with ThreadPoolExecutor(3) as threads:
        found = list(threads.map(lambda _: reading.ask("Who owned it?", **LONG), range(3)))
    assert failed
    assert [result.token_ids for result in found] == [wanted.token_ids] * 3


@pytest.mark.invariant(6)
def test_closing_one_session_leaves_the_others(kernel):
    reading = kernel.read(TEXTS)
    wanted = reading.ask("Who owned it?", **LONG)
    with ThreadPoolExecutor(4) as threads:

        def begun_and_closed(number: int) -> None:
            stream = reading.stream(f"Who owned ship {number}?", **LONG)
            for _ in range(4 + 5 * number):
                next(stream)
            stream.close()

        others = [threads.submit(begun_and_closed, number) for number in range(3)]
        assert threads.submit(reading.ask, "Who owned it?", **LONG).result(60).token_ids == wanted.token_ids
        for other in others:
            other.result(60)
    assert kernel.engine.batcher._sessions == []


def test_two_streams_of_one_thread_do_not_wait_for_each_other(kernel):
    reading = kernel.read(TEXTS)
    wanted = [event for event in reading.stream("Who owned it?", **LONG)][-1].result
    streams = [reading.stream("Who owned it?", **LONG) for _ in range(2)]
    results = []
    while streams:
        for stream in list(streams):
            event = next(stream, None)
            if event is None:
                streams.remove(stream)
            elif hasattr(event, "result"):
                results.append(event.result)
    assert [result.token_ids for result in results] == [wanted.token_ids] * 2


def test_a_short_question_is_answered_while_a_long_document_is_read(kernel):
    """Its steps go by several to a block of the other's reading: it is done long before."""
    document = " ".join(f"On day {day} the ship sailed on." for day in range(400))
    short = kernel.read(TEXTS)
    wanted = short.ask("Who owned it?", threshold=0, **SHORT)
    kernel.engine.block_tokens, before = 64, kernel.engine.block_tokens
    try:
        with ThreadPoolExecutor(1) as thread, spying(kernel.model) as spy:
            reading = thread.submit(kernel.read(document, chunk_tokens=256).prefill)
            while len(spy.batches) < 2:
                time.sleep(0.001)
            begun = len(spy.batches)
            assert short.ask("Who owned it?", threshold=0, **SHORT).token_ids == wanted.token_ids
            passes = spy.batches[begun:]
            reading.result(60)
    finally:
        kernel.engine.block_tokens = before
    blocks = sum(batch.shape[1] == 64 for batch in passes)
    assert blocks < len(passes) / 2


def test_a_waiter_wakes_when_a_grace_period_ends_while_it_decides(monkeypatch):
    """The caller who is expected back never comes; the period ends between two looks of the one who waits for it."""
    lock, expected, waiting = FairLock(), Account(), Account(1.0)
    lock.acquire(expected)
    lock.release(will_return=True)
    left = itertools.chain([1e-3], itertools.repeat(None))
    monkeypatch.setattr(lock, "_grace_left", lambda: next(left))
    thread = threading.Thread(target=lock.acquire, args=(waiting,), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
