"""Loops that are ended by a warning signal and go on where they were: the same bits, and a clear end in every case."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from distributed import Client

import taskgraph as tg
from taskgraph import io, resume
from taskgraph.ops import files

STEPS = 5


@pytest.fixture(autouse=True)
def nothing_heard() -> Iterator[None]:
    """Every test is a process of its own, as far as signals go."""
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    yield
    started_again()


def warn() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


def started_again() -> None:
    resume._came.clear()
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)


class Training:
    """A script in small: everything that a state can hold, made anew at every start."""

    def __init__(self) -> None:
        self.x = tg.random.default_rng(0).standard_normal((24, 6), chunks=8)
        self.w = tg.Variable(np.linspace(-1, 1, 6), name="w")
        self.adam = tg.optim.adam(0.1)
        p = tg.zeros(6)
        self.here = np.zeros(2)
        self.state: dict[str, Any] = {
            "w": self.w,
            "p": p,
            "adam": self.adam.init(p),
            "noise": tg.random.default_rng(5),
            "order": [np.random.default_rng(7), np.random.Generator(np.random.MT19937(8))],
            "seen": ("nothing", None),
            "total": np.float64(0.0),
            "here": self.here,
        }

    def step(self, n: int) -> None:
        """One step of both styles, with numbers of every kind of generator."""
        state = self.state
        noise = state["noise"].standard_normal((24, 6), chunks=8)
        rows = state["order"][0].permutation(24)
        loss = lambda p: tg.sum((self.x[rows] @ p - 1 + 0.01 * tg.sum(noise, axis=1)) ** 2)
        updates, state["adam"] = self.adam.update(tg.grad(loss)(state["p"]), state["adam"], state["p"])
        state["p"] = tg.optim.apply_updates(state["p"], updates)
        tg.Session().run(self.w.assign(self.w * 0.9 + state["p"] * state["order"][1].random()))
        state["total"] = state["total"] + np.float64(n) / 3
        state["seen"] = (f"step {n}", state["p"])
        self.here += n

    def bits(self) -> list[bytes]:
        """Of everything that was computed."""
        s = self.state
        found = [self.w.value.compute(), s["p"].compute(), s["seen"][1].compute(), s["total"], self.here]
        found += [s["noise"].random(3).compute(), *[rng.random(3) for rng in s["order"]]]
        return [np.asarray(x).tobytes() for x in (*found, *[t.compute() for t in tg.tree.leaves(s["adam"])])]


def run(folder: Path, ends: tuple[int, ...] = (), **kwargs: Any) -> tuple[Training, list[int]]:
    """Start the script until it is through; it is warned in the steps `ends`. The last one, and the steps done."""
    seen: list[int] = []
    for _ in range(len(ends) + 1):
        started_again()
        script = Training()
        try:
            for n in tg.resumable(range(STEPS), script.state, folder=folder, **kwargs):
                script.step(n)
                seen.append(n)
                if n in ends:
                    warn()
            return script, seen
        except tg.StateSaved as end:
            said = end
        assert said.code == 75
        assert f"after {seen[-1] + 1} step" in str(said)
    raise AssertionError("it never came to an end")


def test_the_bits_are_those_of_a_run_without_an_end(cluster: Client, tmp_path: Path) -> None:
    expected = run(tmp_path / "one")[0].bits()
    found, seen = run(tmp_path / "several", (0, 2, STEPS - 1), every=2)
    assert seen == list(range(STEPS))  # none twice
    assert found.bits() == expected
    assert found.state["seen"][0] == f"step {STEPS - 1}"
    found, seen = run(tmp_path / "one")
    assert (seen, found.bits()) == ([], expected)


def loop(folder: Path, state: dict[str, Any], in_step: Callable[[int], Any], **kwargs: Any) -> None:
    for n in tg.resumable(range(5), state, folder=folder, **kwargs):
        state["n"] += 1
        in_step(n)


def test_plans_stay_those_of_the_first_start(tmp_path: Path) -> None:
    from taskgraph import execute

    machine, other = (tg.Machine([tg.Device("cpu", 2**30, gflops, "cpu-0")]) for gflops in (10.0, 20.0))
    less = tg.Machine([tg.Device("cpu", 2**29, 30.0, "cpu-0")])
    state = {"n": 0}
    found = []

    def look(n: int) -> None:
        found.append(execute.machine_of(None))
        warn()

    for now in (machine, other, less):
        started_again()
        with mock.patch.object(tg.Machine, "local", lambda now=now: now), pytest.raises(tg.StateSaved):
            loop(tmp_path, state, look)
    assert found == [machine, machine, less]
    assert execute.plans_as_on(None) is None


def test_pins_come_back(tmp_path: Path) -> None:
    state: dict[str, Any] = {"x": tg.ones(3).cpu()}
    for _ in range(2):
        for _ in tg.resumable(range(1), state, folder=tmp_path):
            state["x"] = (state["x"] + 1).persist()
        assert (state["x"]._placed, state["x"].device) == ("cpu", "cpu")
        state = {"x": tg.ones(3).cpu()}


# -- signals -----------------------------------------------------------------------------------------------------------


def test_signals_at_every_time(tmp_path: Path) -> None:
    saves = mock.Mock(wraps=io.save)

    def twice(n: int) -> None:
        warn()
        warn()

    with mock.patch.object(io, "save", saves), pytest.raises(tg.StateSaved):
        loop(tmp_path / "twice", {"n": 0}, twice)
    warn()  # while the script ends
    assert saves.call_count == 2  # at the start and at the end

    def while_saving(*args: Any, **kwargs: Any) -> None:
        io_save(*args, **kwargs)
        if args[1]["done"] == 2:
            warn()

    io_save = io.save
    started_again()
    with mock.patch.object(io, "save", mock.Mock(side_effect=while_saving)) as saves, pytest.raises(tg.StateSaved):
        loop(tmp_path / "saving", {"n": 0}, lambda n: None, every=1)
    assert [call.args[1]["done"] for call in saves.call_args_list] == [0, 1, 2, 3]

    started_again()
    state = {"n": 0}
    with resume.listening():
        warn()  # before the loop
        with pytest.raises(tg.StateSaved, match="after 0 steps"):
            loop(tmp_path / "before", state, lambda n: None)
    started_again()
    loop(tmp_path / "before", state, lambda n: None)
    assert state == {"n": 5}
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    with pytest.raises(KeyError):
        loop(tmp_path / "error", state, lambda n: {}["as asked"])
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


def test_in_another_thread_no_signal_is_heard(tmp_path: Path) -> None:
    state = {"n": 0}
    handlers = []
    inside = lambda n: handlers.append(signal.getsignal(signal.SIGUSR1))
    thread = threading.Thread(target=loop, args=(tmp_path, state, inside), kwargs={"every": 2})
    thread.start()
    thread.join(30)
    assert state == {"n": 5}
    assert set(handlers) == {signal.SIG_DFL}


SCRIPT = """
import os, signal, sys
import taskgraph as tg

w = tg.Variable([1.0, 2.0], name="w")
with tg.Session() as session:
    for step in tg.resumable(range(6), session):
        session.run(w.assign(w * 1.5 + step))
        if str(step) in sys.argv[1:]:
            os.kill(os.getpid(), signal.SIGUSR1)
    print(session.run(w).tobytes().hex())
"""


def start(folder: Path, script: str, *args: str, restart: int = 0) -> subprocess.CompletedProcess[str]:
    path = folder / "train.py"
    path.write_text(script)
    env = {**os.environ, "TASKGRAPH_RUN_FOLDER": str(folder / "run"), "SLURM_RESTART_COUNT": str(restart)}
    command = [sys.executable, str(path), *args]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=folder)


def test_a_script_ends_with_75_and_goes_on(tmp_path: Path) -> None:
    first = start(tmp_path, SCRIPT, "1", "3")
    assert (first.returncode, first.stdout) == (75, ""), first.stderr
    assert "Traceback" not in first.stderr
    assert f"the state after 2 steps is in {tmp_path / 'run' / 'state' / 'loop-0'}; start me again" in first.stderr
    second = start(tmp_path, SCRIPT, "1", "3", restart=1)
    assert (second.returncode, second.stdout) == (75, ""), second.stderr
    assert "goes on after 2 steps" in second.stderr
    assert "(restart 1)" in second.stderr
    third = start(tmp_path, SCRIPT, restart=2)
    w = np.array([1.0, 2.0])
    for step in range(6):
        w = w * 1.5 + step
    assert (third.returncode, third.stdout.strip()) == (0, w.tobytes().hex()), third.stderr


# -- saves that fail ---------------------------------------------------------------------------------------------------


def test_a_full_disk(tmp_path: Path) -> None:
    full = mock.patch.object(files, "sync", side_effect=OSError(28, "No space left on device"))
    state: dict[str, Any] = {"n": 0, "x": tg.ones(2)}

    def fill(n: int) -> None:
        if n == 2:
            full.start()
        if n == 3:
            warn()

    says = "after 4 steps could not be saved; a restart goes on after 2 steps, from .*No space left"
    try:
        with (
            pytest.warns(RuntimeWarning, match="after 3 steps could not be saved; a restart goes on after 2 steps"),
            pytest.raises(RuntimeError, match=says),
        ):
            loop(tmp_path, state, fill, every=1)
    finally:
        full.stop()
    started_again()
    loop(tmp_path, state, lambda n: None)
    assert state["n"] == 5
    started_again()
    with (
        mock.patch.object(files, "sync", side_effect=OSError(28, "No space left on device")),
        pytest.raises(OSError, match="No space"),
    ):
        loop(tmp_path / "at the start", state, lambda n: None)


# -- mistakes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "error", "says"),
    [
        ({}, ValueError, "state is empty"),
        (tg.ones(2), TypeError, r"state is a tensor, .*give a dict"),
        ((tg.ones(2),), TypeError, r"state\[0\] is a tensor"),
        ({"a": [object()]}, TypeError, r"cannot save a object, at state\['a'\]\[0\]"),
        ({(1, 2): 3}, TypeError, "keys are strings or integers"),
    ],
    ids=["empty", "tensor", "tuple", "object", "key"],
)
def test_what_is_no_state(state: Any, error: type[Exception], says: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=says):
        list(tg.resumable(range(3), state, folder=tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else(tmp_path: Path) -> None:
    list(tg.resumable(range(3), {"x": np.zeros(2)}, folder=tmp_path / "a"))
    with pytest.raises(ValueError, match=r"another structure: here is state\['x'\]: array float64 \(3,\), there .*2"):
        list(tg.resumable(range(3), {"x": np.zeros(3)}, folder=tmp_path / "a"))
    with (
        mock.patch.object(sys, "argv", ["other.py"]),
        pytest.raises(ValueError, match=r"state of .*, this is other\.py"),
    ):
        list(tg.resumable(range(3), {"x": np.zeros(2)}, folder=tmp_path / "a"))
    tg.save(tmp_path / "b", {"x": 1})
    with pytest.raises(ValueError, match="a checkpoint, but no state of a loop"):
        list(tg.resumable(range(3), {"x": 1}, folder=tmp_path / "b"))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        list(tg.resumable(range(3), {"x": 1}, folder=tmp_path / "c"))
    with pytest.raises(ValueError, match="at least 1, not 0"):
        tg.resumable(range(3), {"x": 1}, every=0)


def test_loops_one_after_another_and_inside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(resume.FOLDER, str(tmp_path))
    state = {"n": 0}
    for _ in tg.resumable(range(2), state):
        state["n"] += 1
        with pytest.raises(RuntimeError, match=r"itertools\.product"):
            list(tg.resumable(range(2), state))
    for _ in tg.resumable(range(3), state):
        state["n"] += 1
        break
    assert len(list((tmp_path / "state").iterdir())) == 2
    monkeypatch.delenv(resume.FOLDER)
    assert list(tg.resumable(iter("abc"), state)) == ["a", "b", "c"]
    assert len(tg.resumable(range(4))) == 4


def test_a_step_that_puts_nothing_into_the_state_is_a_warning(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="changed nothing in the state"):
        list(tg.resumable(range(2), {"x": tg.ones(2)}, folder=tmp_path))
