"""Values that are written when they are computed and read afterwards: once computed, never again, by whoever asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import dask
import dask.array as da
import numpy as np
import pytest
from distributed import Client

import taskgraph as tg
from taskgraph import execute, io
from taskgraph.provenance import provenance

X = np.random.default_rng(0).normal(size=(12, 8))


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


class Counted:
    """An expensive function: it counts its calls; equal ones are one to Dask and to us."""

    def __init__(self, name: str) -> None:
        self.name, self.calls = name, 0

    def __dask_tokenize__(self) -> str:
        return self.name

    def __call__(self, block: np.ndarray) -> np.ndarray:
        self.calls += 1
        return block * 2

    def of(self, x: np.ndarray = X) -> tg.Tensor:
        return tg.from_dask(da.from_array(x, chunks=(6, 8)).map_blocks(self, dtype=float, meta=np.empty((0, 0))))


@pytest.mark.usefixtures("one_thread")
def test_it_is_computed_once_and_read_afterwards(tmp_path: Path) -> None:
    slow = Counted("slow")
    for _ in range(3):  # made anew each time, as another process would
        y = slow.of().checkpoint(tmp_path / "y")
        found = tg.compute(tg.sum(y), y + 1)
        assert slow.calls == 2  # once a block
        np.testing.assert_allclose(found[0], np.sum(2 * X))
        assert same_bits(found[1], 2 * X + 1)
        assert same_bits(y.persist().compute(), 2 * X)
        assert same_bits(dask.compute(y)[0], 2 * X)
    assert "2 on cpu workers" in (slow.of().checkpoint(tmp_path / "y") + 1).explain()
    assert slow.calls == 2


@pytest.mark.usefixtures("one_thread")
def test_chains_and_branches_compute_nothing_twice(tmp_path: Path) -> None:
    shared, other = Counted("shared"), Counted("other")

    def expressions() -> list[tg.Tensor]:
        s, o = tg.exp(shared.of() / 10), other.of()
        first, beside = tg.sin(s).checkpoint(tmp_path / "first"), (s * o).checkpoint(tmp_path / "beside")
        second = (first * s + 1).checkpoint(tmp_path / "second")
        return [second + s, beside, tg.sum(first)]

    s = np.exp(2 * X / 10)
    expected = [np.sin(s) * s + 1 + s, s * (2 * X), np.sum(np.sin(s))]
    runs = mock.Mock(wraps=execute.run)
    with mock.patch.object(execute, "run", runs):
        for found, value in zip(tg.compute(*expressions()), expected, strict=True):
            np.testing.assert_allclose(found, value)
    assert runs.call_count == 3  # first and beside together, second, the rest
    assert (shared.calls, other.calls) == (2, 2)
    import shutil

    shutil.rmtree(tmp_path / "first")
    tg.compute(expressions()[1])
    assert (shared.calls, other.calls) == (2, 2)
    assert not (tmp_path / "first").exists()  # nobody asked for it


@pytest.mark.parametrize("there", [False, True], ids=["written", "read"])
@pytest.mark.usefixtures("one_thread")
def test_derivatives_pass(there: bool, tmp_path: Path) -> None:
    def loss(x: tg.Tensor, path: Path) -> tg.Tensor:
        return tg.sum(tg.tanh(x @ x.T).checkpoint(path) ** 2)

    x = tg.tensor(X, requires_grad=True)
    if there:
        loss(x, tmp_path / "y").compute()
    plain = lambda x: tg.sum(tg.tanh(x @ x.T) ** 2)
    with_file = lambda x: loss(x, tmp_path / "y")
    np.testing.assert_allclose(tg.grad(with_file)(x).compute(), tg.grad(plain)(x).compute(), rtol=1e-12)
    v = tg.ones(X.shape)
    for found, expected in zip(tg.jvp(with_file, (x,), (v,)), tg.jvp(plain, (x,), (v,)), strict=True):
        np.testing.assert_allclose(found.compute(), expected.compute(), rtol=1e-12)
    loss(x, tmp_path / "y").backward()
    assert x.grad is not None
    (read,) = execute.with_values([x.grad.expr])
    assert "tanh" not in {node.op.name for node in provenance([read])}  # the backward pass has it from the file
    assert np.isfinite(x.grad.compute()).all()


def test_kept_values_and_variables_are_known_by_what_they_were_made_of(cluster: Client, tmp_path: Path) -> None:
    def made(steps: int) -> str:
        x, w = tg.asarray(X, chunks=4).persist(), tg.Variable(np.ones(8), name="w")
        small = tg.asarray(3.0)
        a, small = tg.persist(tg.exp(x), small * 2)
        session = tg.Session()
        for _ in range(steps):
            session.run(w.assign(w * 0.5 + tg.sum(a, axis=0) * small))
        return tg.Tensor(execute.with_values([w.expr])[0]).checkpoint(tmp_path / "w").compute().tobytes()

    first = made(2)
    with mock.patch.object(io, "Draft", side_effect=AssertionError("it is written again")):
        assert made(2) == first
    with pytest.raises(ValueError, match=r"another value than float64 \(8,\)"):
        made(3)


@pytest.mark.usefixtures("one_thread")
def test_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "y"
    tg.exp(tg.asarray(X)).checkpoint(path).compute()
    for other in (tg.exp(tg.asarray(X + 1)), tg.sin(tg.asarray(X)), tg.exp(tg.asarray(X, chunks=4)), tg.ones(3)):
        with pytest.raises(ValueError, match=r"has another value.*float64 \(12, 8\).*remove it, or give another path"):
            other.checkpoint(path).compute()
    x = tg.ones(3)
    with pytest.raises(ValueError, match="given for two values"):
        tg.compute(x.checkpoint(tmp_path / "z"), (x + 1).checkpoint(tmp_path / "z"))
    assert not list(tmp_path.glob("z/data-*"))
    tg.save(tmp_path / "model", {"x": x})
    with pytest.raises(ValueError, match=r"what tg\.save wrote"):
        x.checkpoint(tmp_path / "model").compute()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "main.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="something else"):
        x.checkpoint(tmp_path / "thesis").compute()
    for block in path.rglob("c/*/*"):
        block.unlink()
    with pytest.raises(OSError, match="is missing"):
        tg.exp(tg.asarray(X)).checkpoint(path).compute()


def test_a_run_that_fails_leaves_no_value(tmp_path: Path) -> None:
    def fail(block: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("as asked")

    bad = tg.from_dask(da.ones(4, chunks=2).map_blocks(fail, dtype=float, meta=np.empty(0)))
    y = tg.ones(4, chunks=2).checkpoint(tmp_path / "good")
    with pytest.raises(ZeroDivisionError):
        tg.compute(y, bad.checkpoint(tmp_path / "bad"))
    assert io.described(tmp_path / "bad") is None
    assert not list(tmp_path.glob("*/data-*"))
    np.testing.assert_array_equal(y.compute(), np.ones(4))


#: A script whose client is another process: so the same digests must come out of another interpreter.
_DIGEST = """
import numpy as np, taskgraph as tg
from taskgraph.provenance import provenance
skip = [tg.ones(2) for _ in range({n})]
x = tg.tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
y = tg.random.default_rng(3).normal(size=(3, 2)).persist()
e = tg.grad(lambda x: tg.sum(tg.tanh(x @ y)))(x).expr
print(provenance([e])[e])
"""


def test_the_digest_is_that_of_another_process() -> None:
    import subprocess
    import sys

    def digest(n: int) -> Any:
        return subprocess.run(
            [sys.executable, "-c", _DIGEST.format(n=n)], capture_output=True, text=True, timeout=60, check=True
        ).stdout

    assert digest(0) == digest(5)
