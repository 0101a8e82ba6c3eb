"""Loops that a time limit costs nothing: warned by a signal, they save their state, and a restart goes on from there.

Design note. `resumable` goes through the user's steps and looks between two of them whether SIGUSR1 has come: a batch
system sends it some time before the limit. If so it saves (`tg.save`, so that a kill at any moment leaves the old state
or the new one) and ends the script with code 75, by which who started it knows that it is to be started again.

That a run of several starts gives the bits of one without any takes three things besides the state. Between steps the
state's tensors are blocks that exist (`state.settle`), not expressions that reach into earlier steps. The plans go by
the rates that the machine had when the loop began first, which are saved, too. And numbers are drawn from generators of
the state, or from seeds that are made of the step.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskgraph import execute, io
from taskgraph import state as states
from taskgraph.machine import Machine
from taskgraph.session import Session, variables

T = TypeVar("T")

#: What a script ends with that is to be started again: EX_TEMPFAIL of sysexits.h.
EXIT_CODE = 75
FOLDER = "TASKGRAPH_RUN_FOLDER"
SIGNAL = getattr(signal, "SIGUSR1", None)  # Windows has none

_came = threading.Event()  # the signal, since someone listens
_loops = itertools.count()  # of this process, in the run's folder
_running = threading.Lock()  # held by the loop that runs


class StateSaved(SystemExit):
    """Ends a script whose state was saved because of a warning signal; `code` is 75."""

    def __init__(self, what: str):
        super().__init__(EXIT_CODE)
        self.what = what

    def __str__(self) -> str:
        return self.what


@contextmanager
def listening() -> Iterator[None]:
    """Inside the block SIGUSR1 is noted, and ends nothing; in any thread but the main one nothing changes.

    For programs that run scripts: so a signal before the script's loop is not lost, and one behind it does no harm.
    Behind StateSaved it stays so: the process is about to end, with its own code and not by another signal.
    """
    if SIGNAL is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(SIGNAL, _note)
    ends = False
    try:
        yield
    except StateSaved:
        ends = True
        raise
    finally:
        if not ends:
            # None: installed from C, and cannot be put back
            signal.signal(SIGNAL, signal.SIG_DFL if before is None else before)


def _note(number: int, frame: Any) -> None:
    _came.set()


def resumable(
    steps: Iterable[T], state: Any = None, *, folder: str | os.PathLike[str] | None = None, every: int | None = None
) -> Resumable[T]:
    """Go through `steps`, in a loop that goes on where it was when the script is started again.

    steps: anything to iterate over that gives the same again, such as `range(1000)`; those done are skipped.
    state: what the loop changes: a dict or list, nested as you like, of tensors, arrays, numbers, strings, variables
    and random generators. Every step takes from it and puts into it. None or a Session: the variables that there are
    when the loop begins.
    folder: of the saved state; by default `$TASKGRAPH_RUN_FOLDER/state`, which batch jobs have. Where there is neither
    nothing is saved, and the loop is a plain one.
    every: save each time that so many steps are done, too, against other ends than a time limit.

    On SIGUSR1 (heard in the main thread) the step under way is finished, the state saved, and the script ended by
    StateSaved, a SystemExit of code 75. The bits are those of a run without an end, if numbers depend on the state and
    the step alone and the cluster has the same workers. A loop left by `break` is not done: a restart repeats it from
    the last save. Several loops one after another have a folder each; one inside another is a RuntimeError.

    Raises, before the first step, what a save of the state raises; ValueError where the folder has the state of another
    script or of another structure. RuntimeError where the state cannot be saved at the signal: the last one that was
    saved stays, and says its step. A save of `every` that fails is a warning.

    >>> import tempfile, taskgraph as tg
    >>> state = {"x": tg.zeros(2)}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for step in tg.resumable(range(3), state, folder=folder):
    ...         state["x"] = state["x"] + step
    ...     for step in tg.resumable(range(4), state, folder=folder):  # as a script that is started again
    ...         print(step)
    ...         state["x"] = state["x"] + step
    3
    >>> state["x"].compute()
    array([6., 6.])
    """
    if every is not None and every < 1:
        raise ValueError(f"resumable: every is a number of steps, at least 1, not {every}")
    return Resumable(steps, state, None if folder is None else Path(folder), every)


class Resumable(Generic[T]):
    """What `resumable` gives: to be iterated over once."""

    def __init__(self, steps: Iterable[T], state_: Any, folder: Path | None, every: int | None):
        self._steps, self._state, self._folder, self._every = steps, state_, folder, every
        self._client = state_._client if isinstance(state_, Session) else None

    def __len__(self) -> int:
        return len(self._steps)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[T]:
        if not _running.acquire(blocking=False):
            raise RuntimeError("resumable: one loop runs inside another; make them one: itertools.product(...)")
        before = execute.plans_as_on(None)
        try:
            with listening():
                yield from self._run()
        finally:
            execute.plans_as_on(before)
            _running.release()

    def _run(self) -> Iterator[T]:
        folder = self._folder or _default_folder()
        if folder is None:
            _say(f"nothing is saved: no folder is given, and {FOLDER} is not set")
            yield from self._steps
            return
        saved = _Saved(folder, _places(self._state), self._client)
        done = saved.open()
        first, is_first = states.values(saved.state), True
        self._end_if_warned(saved, done)
        for step in itertools.islice(self._steps, done, None):
            yield step
            done += 1
            saved.settle()
            if is_first:
                _warn_if_same(first, states.values(saved.state))
            is_first = False
            self._end_if_warned(saved, done)
            if self._every and done % self._every == 0:
                saved.try_to_save(done)
        saved.try_to_save(done)

    def _end_if_warned(self, saved: _Saved, done: int) -> None:
        if not _came.is_set():
            return
        saved.save_at_limit(done)
        end = StateSaved(f"warned by a signal: the state after {_steps(done)} is in {saved.folder}; start me again")
        _say(str(end))
        raise end


class _Saved:
    """The folder of a loop's state, and what is known of it."""

    def __init__(self, folder: Path, state_: Any, client: Any):
        self.folder, self.state, self.at = folder.absolute(), state_, -1  # steps done in the folder's state
        self._kwargs = {} if client is None else {"scheduler": client}
        self._client = execute.client_of(client)
        states.check(state_)
        self._about = {"script": Path(sys.argv[0]).name, "structure": states.described(state_)}

    def open(self) -> int:
        """Give the state its saved values, if there are any, or save it as it is; how many steps are done."""
        try:
            found = io.load(self.folder, **self._kwargs)
        except FileNotFoundError:
            self.machine = execute.machine_of(self._client)
            execute.plans_as_on(self.machine)
            self.settle()
            self.save(0)
            return 0
        self._check_same(found)
        self.machine = Machine.from_json(found["machine"])
        execute.plans_as_on(self.machine)
        self.state = states.restored(self.state, found["state"])
        self.settle()
        self.at = int(found["done"])
        restarts = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        _say(f"goes on after {_steps(self.at)}, from {self.folder}" + (f" (restart {restarts})" if restarts else ""))
        return self.at

    def settle(self) -> None:
        """Between two steps."""
        self.state = states.settle(self.state, **self._kwargs)

    def save(self, done: int) -> None:
        """Write the state, unless this one is there already."""
        if done == self.at:
            return
        tree = {"done": done, **self._about, "machine": self.machine.to_json(), "state": states.captured(self.state)}
        io.save(self.folder, tree, **self._kwargs)
        self.at = done

    def try_to_save(self, done: int) -> None:
        """A save that the run can do without."""
        try:
            self.save(done)
        except OSError as error:
            warnings.warn(f"{self._not_saved(done)}: {error}", RuntimeWarning, stacklevel=2)

    def save_at_limit(self, done: int) -> None:
        """A save that it cannot do without: RuntimeError says from where a restart would go on."""
        try:
            self.save(done)
        except Exception as error:
            raise RuntimeError(f"{self._not_saved(done)}: {error}") from error

    def _not_saved(self, done: int) -> str:
        return (
            f"resumable: the state after {_steps(done)} could not be saved; a restart goes on after {_steps(self.at)}, "
            f"from {self.folder}"
        )

    def _check_same(self, found: Any) -> None:
        if not isinstance(found, dict) or "done" not in found or "structure" not in found:
            raise ValueError(f"resumable: {self.folder} has a checkpoint, but no state of a loop; give another folder=")
        if found["script"] != self._about["script"]:
            raise ValueError(
                f"resumable: {self.folder} has the state of {found['script'] or 'another program'}, this is "
                f"{self._about['script']}; give another folder=, or remove it"
            )
        here, there = self._about["structure"], found["structure"]
        if here != there:
            differs = next((h, t) for h, t in itertools.zip_longest(here, there, fillvalue="nothing") if h != t)
            raise ValueError(
                f"resumable: {self.folder} has a state of another structure: here is {differs[0]}, there {differs[1]}; "
                "give another folder=, or remove it to begin anew"
            )


def _default_folder() -> Path | None:
    run = os.environ.get(FOLDER)
    return Path(run, "state", f"loop-{next(_loops)}") if run else None


def _places(given: Any) -> Any:
    if given is not None and not isinstance(given, Session):
        return given
    found: dict[str, Any] = {}
    for v in variables():
        if v.name in found:
            raise ValueError(f"resumable: two variables are called {v.name!r}; give them other names, or give a state")
        found[v.name] = v
    if not found:
        raise ValueError("resumable: there is nothing to save: no variable, and no state was given")
    return found


def _warn_if_same(first: list[Any], now: list[Any]) -> None:
    if first and len(first) == len(now) and all(a is b for a, b in zip(first, now, strict=True)):
        warnings.warn(
            "resumable: the first step has changed nothing in the state; a step puts what it makes into the state "
            "(state['x'] = ...), a name that it gives to a new value is not saved",
            RuntimeWarning,
            stacklevel=2,
        )


def _steps(done: int) -> str:
    return f"{done} step" + "s" * (done != 1)


def _say(what: str) -> None:
    print(f"taskgraph: {time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)
