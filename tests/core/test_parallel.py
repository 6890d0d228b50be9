"""Parallel maps: results in order, errors in place, torch's threads restored, items taken as they are needed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from knn_cli.core import parallel
from knn_cli.core.parallel import limited, parallel_map, single_threaded

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_order_and_threads() -> None:
    """The first result waits for the third one: they can only come from several threads, one of torch's for each."""
    third = threading.Event()

    def work(number: int) -> tuple[int, int]:
        if number == 2:
            third.set()
        assert number or third.wait(10)
        return number, torch.get_num_threads()

    with parallel_map(CPU, jobs=3) as mapped:
        assert list(mapped(work, range(20))) == [(number, 1) for number in range(20)]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


def test_threads_of_the_program_share_the_number() -> None:
    """Two callers at once: the second, who finds one thread, gets as many, and the last to leave puts them back."""
    inside, leave = threading.Event(), threading.Event()

    def first() -> None:
        with single_threaded():
            inside.set()
            assert leave.wait(10)

    other = threading.Thread(target=first)
    other.start()
    assert inside.wait(10)
    with single_threaded() as threads:
        assert threads == 3
        leave.set()
        other.join()
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in Linux' /proc")
def test_sums_start_no_threads_of_their_own() -> None:
    script = """
import os, torch
from knn_cli.core.parallel import parallel_map
with parallel_map(torch.device("cpu"), jobs=4) as mapped:
    work = lambda _: torch.mm(torch.ones(512, 512), torch.ones(512, 512)).sum().item()
    assert list(mapped(work, range(40))) == [512.0**3] * 40
    print(len(os.listdir("/proc/self/task")))
"""
    four = {name: "4" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | {"OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, env=os.environ | four
    )
    assert int(done.stdout) <= 5  # the main one, and four workers


def test_one_map_feeds_another() -> None:
    with parallel_map(CPU) as mapped:
        assert list(mapped(lambda x: x + 1, mapped(lambda x: 10 * x, range(50)))) == [10 * x + 1 for x in range(50)]


def test_items_are_taken_as_they_are_needed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(100):
            taken += 1
            yield number

    with parallel_map(CPU, jobs=3) as mapped:
        results = iter(mapped(abs, items()))
        assert next(results) == 0
        assert taken <= 4  # of three threads, and the one that was waited for


def test_there_are_never_more_threads_than_that() -> None:
    with parallel_map(CPU, max_items=2, jobs=3) as mapped:
        assert len(set(mapped(lambda _: threading.get_ident(), range(50)))) <= 2
    with parallel_map(CPU, max_items=1) as mapped:
        assert set(mapped(lambda _: threading.get_ident(), range(50))) == {threading.get_ident()}


@pytest.mark.parametrize(("jobs", "items", "inner"), [(7, 2, 3), (7, 16, 1), (5, 1, 5), (1, 4, 1)])
def test_maps_inside_share_the_processors(jobs: int, items: int, inner: int) -> None:
    """Of seven processors with two items at once, each item has three, however many it asks for."""

    def most_at_once(_: int) -> int:
        together: list[int] = []
        with parallel_map(CPU, jobs=20) as mapped:
            inside: set[int] = set()

            def work(number: int) -> None:
                inside.add(number)
                time.sleep(0.002)
                together.append(len(inside))
                inside.discard(number)

            list(mapped(work, range(30)))
        return max(together)

    with parallel_map(CPU, items, jobs=jobs) as mapped:
        found = list(mapped(most_at_once, range(3)))
    assert max(found) <= inner and (inner == 1 or max(found) > 1)
    with limited(2), parallel_map(CPU, jobs=jobs) as mapped:
        assert len(set(mapped(lambda _: threading.get_ident(), range(50)))) <= 2


def test_idle_processors_are_taken_up_to_the_threads_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def threads(idle: int) -> int:
        monkeypatch.setattr(parallel, "idle_processors", lambda: idle)
        met = threading.Barrier(min(3, idle), timeout=20)  # passed only if so many are at work at once
        with parallel_map(CPU) as mapped:
            return len({found for found in mapped(lambda _: met.wait() * 0 + threading.get_ident(), range(6))})

    assert [threads(idle) for idle in (1, 2, 40)] == [1, 2, 3]


def test_an_error_comes_where_the_result_would() -> None:
    with pytest.raises(ZeroDivisionError), parallel_map(CPU) as mapped:
        results = iter(mapped(lambda x: 1 // (2 - x), range(10)))
        assert [next(results), next(results)] == [0, 1]
        next(results)
    assert torch.get_num_threads() == 3


def test_other_devices_map_plainly() -> None:
    with parallel_map(torch.device("meta")) as mapped:
        assert mapped is map and torch.get_num_threads() == 3


def test_one_thread_says_how_many_there_were() -> None:
    with pytest.raises(KeyError), single_threaded() as threads:
        assert (threads, torch.get_num_threads()) == (3, 1)
        raise KeyError
    assert torch.get_num_threads() == 3


def test_work_without_torch_does_not_load_it() -> None:
    script = """
import sys, threading
from knn_cli.core.parallel import parallel_map
with parallel_map(None) as mapped:
    print(len(set(mapped(lambda _: threading.get_ident(), range(9)))))
with parallel_map(None, jobs=2) as mapped:
    met = threading.Barrier(2, timeout=20)
    print(len(set(mapped(lambda _: met.wait() * 0 + threading.get_ident(), range(6)))), "torch" in sys.modules)
"""
    run = [sys.executable, "-c", script]
    done = subprocess.run(run, capture_output=True, text=True, check=True, env=os.environ | {"OMP_NUM_THREADS": "1,2"})
    assert done.stdout.split() == ["1", "2", "False"]


def test_maps_within_end_when_nobody_wants_their_results() -> None:
    begun, done = threading.Event(), []

    def batch(number: int) -> None:
        begun.set()
        time.sleep(0.01)
        done.append(number)

    def work(number: int) -> None:
        if not number:
            begun.wait(20)
            raise ZeroDivisionError
        with parallel_map(None) as each:
            list(each(batch, range(200)))

    with pytest.raises(ZeroDivisionError), parallel_map(None, 2, jobs=2) as each:
        list(each(work, [0, 1]))
    assert 0 < len(done) < 20
