"""What runs apart from the process: the same numbers, and nothing of other threads is touched."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import functools
import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from contracts.forked import said
from contracts.watched import child
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsitywatch as sw
from sparsitywatch.proxy import apart
from sparsitywatch.proxy.apart import Fork, ForkError, SharedStateError, others
from sparsitywatch.ranks.protocol import ALONE
from sparsitywatch.redact import logger


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apart, "_LOOK_S", 0.02)


@contextlib.contextmanager
def running(target: Callable[[threading.Event], object], **options) -> Iterator[threading.Thread]:
    """A thread beside the test, until it is told to end."""
    end = threading.Event()
    thread = threading.Thread(target=target, args=[end], **options)
    thread.start()
    try:
        yield thread
    finally:
        end.set()
        thread.join()


def wait(end: threading.Event) -> None:
    end.wait()


# ------------------------------------------------------------------ other threads


def in_pool(end: threading.Event) -> Callable[[], object]:
    pool = ThreadPoolExecutor(1)
    pool.submit(end.wait)
    return pool.shutdown


def in_thread_pool(end: threading.Event) -> Callable[[], object]:
    pool = ThreadPool(1)
    pool.apply_async(end.wait)

    def close() -> None:
        pool.close()
        pool.join()

    return close


def in_timer(end: threading.Event) -> Callable[[], object]:
    timer = threading.Timer(60.0, end.set)
    timer.start()

    def close() -> None:
        timer.cancel()
        timer.join()

    return close


def in_loop(_: threading.Event) -> Callable[[], object]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def close() -> None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    return close


def without_threading(end: threading.Event) -> Callable[[], object]:
    begun, over = threading.Event(), threading.Event()
    _thread.start_new_thread(lambda: (begun.set(), end.wait(), over.set()), ())
    begun.wait()
    return over.wait


def of_a_class(end: threading.Event) -> Callable[[], object]:
    class Worker(threading.Thread):
        def run(self) -> None:
            end.wait()

    worker = Worker()
    worker.start()
    return worker.join


@pytest.mark.parametrize(
    "made", [in_pool, in_thread_pool, in_timer, in_loop, without_threading, of_a_class]
)
def test_whoever_runs_code_of_others_is_another_thread(made) -> None:
    assert others() == []
    end = threading.Event()
    close = made(end)
    try:
        assert others() != []
    finally:
        end.set()
        close()
    for _ in range(1000):
        if not others():
            return
        time.sleep(0.002)
    pytest.fail(f"{others()} are still there")


def test_a_worker_without_work_and_known_threads_are_no_matter() -> None:
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(abs, range(20)))
        for _ in range(1000):
            if not others():
                break
            time.sleep(0.002)
        assert others() == []
        held = threading.Event()
        pool.submit(held.wait)
        found = others()
        held.set()
    assert found
    tqdm = pytest.importorskip("tqdm")
    with tqdm.tqdm(range(2), file=SimpleNamespace(write=len, flush=int)) as bar:
        bar.update()
        assert "tqdm_monitor" in {thread.name for thread in threading.enumerate()}
        assert others() == []
    loader = DataLoader(TensorDataset(torch.arange(4.0)), num_workers=1)
    for _ in loader:  # it feeds a queue
        assert others() == []
    with running(wait, name="fsspecIO"):
        assert others() == []
    with running(wait, name="mine"):
        assert others() == ["mine"]


ENDING = """
import gc, sys, threading
from sparsitywatch.proxy.apart import others

def deep(number, end):
    end.wait() if number == 0 else deep(number - 1, end)

def ended(phase, info):
    if sys._getframe(1).f_code.co_name == "_is_harmless" and not end.is_set():
        end.set()
        thread.join()

gc.set_threshold(2)
for is_on in [True, False, True]:
    end = threading.Event()
    thread = threading.Thread(target=deep, args=[100, end])
    thread.start()
    gc.callbacks.append(ended)
    (gc.enable if is_on else gc.disable)()
    others()
    print(gc.isenabled(), end="; ")
    gc.callbacks.clear()
    end.set()
    thread.join()
"""


def test_a_thread_that_ends_while_it_is_looked_at_does_not_crash_the_process(tmp_path) -> None:
    assert said(ENDING, tmp_path)[0] == "True; False; True; "


def test_who_wraps_the_start_of_each_thread_does_not_make_it_harmless() -> None:
    wraps: dict = {"__name__": "sentry_sdk.integrations.threading"}
    exec("def around(run, end):\n    run(end)\n", wraps)
    with running(functools.partial(wraps["around"], wait), name="mine"):
        assert others() == ["mine"]


# ------------------------------------------------------------------ apart


def drawn() -> list[float]:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 as users do
    random.seed(1)
    return [float(torch.rand(())), np.random.rand(), random.random()]  # noqa: NPY002


def states() -> list:
    numpys = np.random.get_state()  # noqa: NPY002
    return [torch.get_rng_state().tolist(), numpys[1].tolist(), numpys[2], random.getstate()]


def test_beside_another_thread_nothing_of_the_process_is_touched() -> None:
    class Learner:
        def __init__(self) -> None:
            self.known = 0

        def learned(self) -> dict:
            return {"known": self.known + 1}

        def learn(self, state: dict) -> None:
            self.known = state["known"]

    learner, pid = Learner(), os.getpid()
    before = states()
    with running(wait):
        found, in_pid = apart.apart(lambda: (drawn(), os.getpid()), None, ALONE, learner)
    assert states() == before
    assert in_pid != pid
    assert learner.known == 1
    assert apart.apart(lambda: (drawn(), os.getpid()), None, ALONE, learner) == (found, pid)
    assert learner.known == 1


UNSAFE = {
    "only Linux": ("sys.platform", "darwin"),
    "several processes": ("is_distributed", lambda: True),
    "a device is in use": ("torch.cuda.is_initialized", lambda: True),
}


@pytest.mark.parametrize("why", UNSAFE)
def test_where_no_fork_is_safe_it_is_refused_with_the_threads_names(why, monkeypatch) -> None:
    monkeypatch.setattr(f"sparsitywatch.proxy.apart.{UNSAFE[why][0]}", UNSAFE[why][1])
    model = nn.Linear(1, 1)
    before = states()
    with running(wait, name="augments"), pytest.raises(SharedStateError, match=why) as caught:
        apart.apart(drawn, model, ALONE)
    assert "(augments)" in str(caught.value)
    assert "`threads_draw=False`" in str(caught.value)
    assert states() == before
    assert apart.apart(drawn, model, ALONE) == drawn()  # without another thread it runs here


def test_a_model_on_a_device_is_not_evaluated_in_a_fork() -> None:
    assert apart.why_no_fork(nn.Linear(1, 1), ALONE) == ""
    assert "a device is in use" in apart.why_no_fork(nn.Linear(1, 1, device="meta"), ALONE)


def test_a_proxy_is_drawn_apart_and_an_evaluation_too() -> None:
    class Drawing(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 6

        def __getitem__(self, index: int) -> torch.Tensor:
            return torch.rand(3) + np.random.rand() + random.random()  # noqa: NPY002

    def make() -> sw.Proxy:
        loader = DataLoader(Drawing(), batch_size=3, shuffle=True)
        return sw.Proxy(loader, lambda model, batch: model(batch).sum(1) + torch.rand(3))

    model, alone = nn.Linear(3, 3), make()
    values = alone.evaluate(model)
    before = states()
    with running(wait):
        proxy = make()
        assert proxy.evaluate(model).tolist() == values.tolist()
        assert proxy.unit == "example"
        record = sw.measure(model, proxy, scope="layers", levels=[0.5])
    assert states() == before
    assert proxy.hash == alone.hash
    assert record.curve == sw.measure(model, alone, scope="layers", levels=[0.5]).curve
    assert states() == before


def test_a_proxy_that_can_be_drawn_nowhere_is_refused_and_a_list_is_not(monkeypatch) -> None:
    monkeypatch.setattr(apart.sys, "platform", "darwin")
    batches = [torch.ones(2, 1), torch.zeros(2, 1)]

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        return model(batch)[:, 0]

    with running(wait):
        with pytest.raises(sw.errors.ProxyError, match="Make the proxy before these threads"):
            sw.Proxy(iter(batches), value)
        proxy = sw.Proxy(batches, value)
        with pytest.raises(sw.errors.MeasurementError, match="only Linux ends a fork"):
            proxy.evaluate(nn.Linear(1, 1))
        with pytest.raises(sw.errors.MeasurementError, match="only Linux ends a fork"):
            sw.measure(nn.Linear(1, 1), proxy, scope="layers")
        assert sw.measure(
            nn.Linear(1, 1), proxy, scope="matrices", levels=[0.5], threads_draw=False
        ).curve


# ------------------------------------------------------------------ a function in a fork


def test_a_function_in_a_fork_gives_what_it_returns_or_raises() -> None:
    assert Fork(lambda: torch.ones(300, 300).sum().item()).result() == 90_000.0
    assert len(Fork(lambda: b"x" * 2**22).result()) == 2**22  # more than a pipe holds
    with pytest.raises(ZeroDivisionError):
        Fork(lambda: 1 / 0).result()
    with pytest.raises(ForkError, match="but it returned 1"):
        Fork(lambda: lambda: 0).result()  # which cannot be sent


def test_threads_that_the_training_has_used_do_not_hang_a_fork(monkeypatch) -> None:
    monkeypatch.undo()
    num, one = torch.get_num_threads(), torch.ones(400, 400)
    torch.set_num_threads(2)
    try:
        total = float((one @ one).exp().isinf().sum() + one.relu_().sum())
        again = Fork(lambda: float((one @ one).exp().isinf().sum() + one.relu_().sum()))
        assert again.result() == total
        assert Fork(torch.get_num_threads).result() == 1
    finally:
        torch.set_num_threads(num)


def test_a_fork_that_is_killed_or_hangs_is_told_and_leaves_no_zombie(monkeypatch) -> None:
    killed = Fork(lambda: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(ForkError, match="signal 9 has ended it"):
        killed.result()
    monkeypatch.setattr(apart, "_STILL_S", 0.1)
    hanging = Fork(lambda: time.sleep(60))
    with pytest.raises(ForkError, match=r"it used no processor for 0\.1 s"):
        hanging.result()
    for fork in (killed, hanging):
        with pytest.raises(ProcessLookupError):
            os.kill(fork.pid, 0)


def test_a_fork_whose_end_somebody_else_has_waited_for_is_done() -> None:
    fork = Fork(lambda: 7)
    os.waitpid(fork.pid, 0)
    assert fork.result() == 7


def test_a_fork_leaves_signals_buffers_and_generators_to_the_training(capfd) -> None:
    def shoot() -> str:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGALRM):
            os.kill(os.getpid(), number)
        print("said in the fork")
        return "alive"

    before = signal.signal(signal.SIGALRM, lambda *_: os._exit(3))
    try:
        print("said before", end=", ")
        assert Fork(shoot).result() == "alive"
    finally:
        signal.signal(signal.SIGALRM, before)
    assert capfd.readouterr().out == "said before, said in the fork\n"
    state = random.getstate()
    drawn = Fork(random.random).result()
    assert random.getstate() == state
    assert drawn == random.random()


def test_what_is_logged_in_a_fork_is_logged_by_the_training(caplog) -> None:
    def log() -> None:
        try:
            int("no number")
        except ValueError:
            logger.exception("evaluation failed at %s", "step 3")

    Fork(log).result()
    assert [record.getMessage() for record in caplog.records] == [
        "sparsitywatch: evaluation failed at step 3"
    ]
    assert "ValueError: invalid literal" in caplog.text


@pytest.mark.slow
def test_a_fork_ends_with_a_training_that_is_killed() -> None:
    code = """
    from sparsitywatch.proxy.apart import Fork
    print(Fork(lambda: time.sleep(60)).pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    returned, output, errors = child("\n".join(map(str.strip, code.splitlines()))).communicate()
    assert returned == -signal.SIGKILL, errors
    status = Path(f"/proc/{int(output)}/status")
    for _ in range(100):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the fork outlives the training")


# ------------------------------------------------------------------ what other threads hold


def test_generators_that_another_thread_holds_are_free_in_a_fork() -> None:
    expected, numpys = drawn(), np.random.mtrand._rand._bit_generator.lock

    def draw(end: threading.Event) -> None:
        while not end.is_set():
            torch.randn(200, 200)
            with numpys:
                np.random.rand(2000)  # noqa: NPY002

    with running(draw):
        found = [Fork(drawn).result() for _ in range(8)]
    assert found == [expected] * 8


def test_what_evaluates_here_at_the_same_time_does_not_hold_up_a_fork() -> None:
    held, end = threading.Event(), threading.Event()

    def evaluate(_: threading.Event) -> None:
        with apart.EVALUATING:
            held.set()
            end.wait()

    with running(evaluate):
        held.wait()
        try:
            with_lock = Fork(lambda: apart.EVALUATING.acquire(timeout=5.0)).result()
        finally:
            end.set()
    assert with_lock


def test_one_thread_evaluates_at_a_time() -> None:
    inside, most, lock = 0, 0, threading.Lock()

    def value(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        time.sleep(0.002)
        with lock:
            inside -= 1
        return model(batch)[:, 0]

    proxy = sw.Proxy([torch.ones(2, 1), torch.zeros(2, 1)], value).shared(ALONE)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: proxy.evaluate(nn.Linear(1, 1)), range(6)))
    assert most == 1


def test_a_fork_that_cannot_begin_is_given_up(monkeypatch) -> None:
    monkeypatch.setattr(apart, "_BEGIN_S", (0.01, 0.01))
    pids = []
    monkeypatch.setattr(
        apart.Fork, "_has_begun", lambda self, _: bool(pids.append(self.pid)), raising=True
    )
    with pytest.raises(ForkError, match="2 of them hung"):
        Fork(drawn)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_who_waits_and_is_interrupted_leaves_no_fork_behind() -> None:
    fork = Fork(lambda: time.sleep(60))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            fork.result()
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(fork.pid, 0)


def test_a_handler_that_raises_before_a_fork_leaves_no_signal_blocked(monkeypatch) -> None:
    block = signal.pthread_sigmask

    def handled(how: int, mask) -> set:
        before = block(how, mask)
        if how == signal.SIG_BLOCK and mask:  # what Python does once the mask is set
            raise KeyboardInterrupt
        return before

    monkeypatch.setattr(signal, "pthread_sigmask", handled)
    with pytest.raises(KeyboardInterrupt):
        Fork(lambda: 7)
    monkeypatch.undo()
    assert block(signal.SIG_BLOCK, ()) == set()
    assert Fork(lambda: 7).result() == 7


def test_a_fork_of_another_thread_than_the_main_one() -> None:
    found: queue.Queue = queue.Queue()
    with running(lambda _: found.put(Fork(drawn, num_threads=2).result())):
        assert found.get(timeout=60) == drawn()


def test_an_error_that_cannot_be_sent_is_told_in_words() -> None:
    class OwnError(Exception):
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    def fail() -> None:
        raise OwnError(1, 2)

    with pytest.raises(sw.errors.MeasurementError, match="OwnError: 1 and 2"):
        Fork(fail).result()
