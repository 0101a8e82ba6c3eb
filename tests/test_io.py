"""Checkpoints: every bit comes back, and a kill at any moment leaves the old or the new one."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
import zarr
from distributed import Client, futures_of

import taskgraph as tg
from taskgraph.ops import files
from taskgraph.tensor import Tensor

ROOT = Path(__file__).parents[1]


def same_bits(a: Any, b: Any) -> bool:
    """Values, type and shape, NaN's payloads and the sign of zero included."""
    a, b = np.asarray(a), np.asarray(b)
    return (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def alike(a: Any, b: Any) -> bool:
    """Whether two trees hold the same bits in the same structure."""
    found: list[bool] = []
    tg.tree.map(lambda x, y: found.append(same_bits(x, y) if isinstance(x, Tensor | np.ndarray) else x == y), a, b)
    return all(found)


def generations(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


# -- values ------------------------------------------------------------------------------------------------------------


def special(dtype: str) -> np.ndarray:
    x = np.arange(35).astype(dtype).reshape(5, 7)
    if x.dtype.kind in "fc":
        x[0, :4] = [np.nan, -0.0, np.inf, np.finfo(x.dtype).smallest_subnormal]
    return x


@pytest.mark.parametrize(
    "dtype", ["float16", "float32", "float64", "complex64", "complex128", "bool", "int8", "uint64"]
)
@pytest.mark.parametrize("chunks", [-1, (2, 3), ((1, 3, 1), (2, 5))])
def test_every_bit_and_every_block_comes_back(dtype: str, chunks: Any, tmp_path: Path) -> None:
    x = special(dtype)
    t = tg.asarray(x, chunks=chunks)
    tg.save(tmp_path / "c", t)
    back = tg.load(tmp_path / "c")
    assert same_bits(back.compute(), x)
    assert back.chunks == t.chunks


def test_zeros_are_written_like_other_numbers(tmp_path: Path) -> None:
    """Zarr would leave them out, and -0.0 with them."""
    x = np.full((4, 4), -0.0)
    tg.save(tmp_path, tg.asarray(x, chunks=2))
    assert same_bits(tg.load(tmp_path).compute(), x)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (1, 1, 1)])
def test_shapes_at_the_edge(shape: tuple[int, ...], tmp_path: Path) -> None:
    tg.save(tmp_path, {"x": tg.ones(shape)})
    assert same_bits(tg.load(tmp_path)["x"].compute(), np.ones(shape))


def test_blocks_of_no_elements(tmp_path: Path) -> None:
    t = tg.asarray(np.arange(4.0), chunks=((2, 0, 2),))
    tg.save(tmp_path, t)
    back = tg.load(tmp_path)
    assert back.chunks == t.chunks
    assert same_bits(back.compute(), np.arange(4.0))


def test_a_tree_keeps_its_structure(tmp_path: Path) -> None:
    tree = {
        "layers": [{"w": tg.ones((2, 2)), 7: tg.zeros(3)}, ()],
        "state": ({"count": tg.asarray(3)}, None, True, 1.5, float("inf"), "name", 2**70),
        "numpy": np.arange(3),
        "variable": tg.Variable([1.0, 2.0]),
        "leaf": tg.tensor([1.0], requires_grad=True),
    }
    tg.save(tmp_path, tree)
    back = tg.load(tmp_path)
    assert alike(tree, back)
    assert back["leaf"].is_leaf
    assert not back["numpy"].requires_grad
    assert type(back["state"][2]) is bool


def test_what_is_not_computed_is_computed_once_and_others_can_read_it(tmp_path: Path) -> None:
    x = tg.asarray(np.arange(12.0).reshape(4, 3), chunks=(2, 3))
    tg.save(tmp_path, [x @ x.T, tg.exp(x)])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    group = zarr.open_group(str(tmp_path / manifest["data"]), mode="r")
    np.testing.assert_array_equal(group["1"][...], np.exp(np.arange(12.0).reshape(4, 3)))
    assert same_bits(tg.load(tmp_path)[0].compute(), (x @ x.T).compute())


def test_a_cluster_reads_and_writes_where_the_blocks_are(cluster: Client, tmp_path: Path) -> None:
    x = tg.random.default_rng(0).normal(size=(40, 30), chunks=(13, 11)).persist()
    tg.save(tmp_path, {"x": x, "product": x @ x.T})
    back = tg.load(tmp_path)
    assert len(futures_of(back["x"])) == 12
    assert back["x"].chunks == x.chunks
    shutil.rmtree(tmp_path)  # what was loaded needs no file
    assert same_bits(back["x"].compute(), x.compute())
    np.testing.assert_allclose(back["product"].compute(), x.compute() @ x.compute().T, rtol=1e-13, atol=1e-12)


# -- mistakes and damage -----------------------------------------------------------------------------------------------


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        tg.load(tmp_path / "nowhere")
    with pytest.raises(TypeError, match=r"cannot save a object, at \['a'\]\[1\]"):
        tg.save(tmp_path / "c", {"a": [tg.ones(2), object()]})
    with pytest.raises(TypeError, match="keys are strings or integers"):
        tg.save(tmp_path / "c", {(1, 2): tg.ones(2)})
    assert not (tmp_path / "c").exists()
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"something else than a checkpoint: thesis\.tex"):
        tg.save(tmp_path, tg.ones(2))
    with pytest.raises(FileExistsError, match="is a file"):
        tg.save(tmp_path / "thesis.tex", tg.ones(2))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(OSError, match="none of ours"):
        tg.load(tmp_path / "other")
    with mock.patch.dict(sys.modules, {"zarr": None}), pytest.raises(ImportError, match=r"dask-taskgraph\[io\]"):
        tg.save(tmp_path / "c", tg.ones(2))


def test_what_cannot_be_computed_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    tg.save(tmp_path, {"step": 1, "x": tg.ones(4, chunks=2)})
    before = generations(tmp_path)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with mock.patch.object(files, "sync", fail), pytest.raises(OSError, match="No space left"):
        tg.save(tmp_path, {"step": 2, "x": tg.ones(4, chunks=2)})
    assert tg.load(tmp_path)["step"] == 1
    assert set(before) <= set(generations(tmp_path))
    tg.save(tmp_path, {"step": 3})
    assert len(generations(tmp_path)) == 2  # nothing is left of the one that failed


def blocks_of(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("c/*") if p.is_file())


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.unlink(), r"block \(1,\) of .* is missing"),
        (
            lambda p: p.write_bytes(p.read_bytes()[:-9] + b"x" + p.read_bytes()[-8:]),
            r"block at \(3,\) of .* is damaged",
        ),
        (lambda p: p.write_bytes(p.read_bytes()[:5]), r"block at \(3,\) of .* is damaged"),
        (lambda p: (p.parents[1] / "zarr.json").unlink(), "is damaged"),
    ],
    ids=["missing", "flipped", "short", "no metadata"],
)
def test_damage_shows(damage: Callable[[Path], Any], says: str, tmp_path: Path) -> None:
    tg.save(tmp_path, tg.asarray(np.arange(6.0), chunks=3))
    damage(blocks_of(tmp_path)[1])
    with pytest.raises(OSError, match=says):
        tg.load(tmp_path)


def test_a_disk_that_is_not_shared(tmp_path: Path) -> None:
    tg.save(tmp_path / "c", tg.zeros(4))
    with pytest.raises(FileNotFoundError, match=r"a worker wrote .*, not seen here"):
        files.check_files([tmp_path / "nothing"])
    with pytest.raises(FileNotFoundError, match="does not see"):
        files._write_block(np.zeros(2), str(tmp_path / "nowhere"), (0,))


# -- kills -------------------------------------------------------------------------------------------------------------


def state_of(step: int) -> dict[str, Any]:
    """A state of which every part says which step it is of."""
    return {"step": step, "w": tg.full((4, 4), float(step), chunks=2), "m": [tg.full((3,), float(step)), step]}


def step_of(path: Path) -> int:
    tree = tg.load(path)
    assert alike(tree, state_of(tree["step"]))
    return int(tree["step"])


def save_and_die(path: str, step: int, moment: int) -> None:
    """Save, and die by SIGKILL at that file operation (counted from 0); exit with what they were where it survives."""
    seen = 0

    def audit(event: str, args: Any) -> None:
        nonlocal seen
        at_path = any(isinstance(a, str | os.PathLike) and str(a).startswith(path) for a in args[:2])
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree") and at_path:
            if seen == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1

    sys.addaudithook(audit)
    tg.save(path, state_of(step), scheduler="sync")
    os._exit(min(seen, 255))


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_checkpoint(tmp_path: Path) -> None:
    """At every fifth file operation of a save, from the first folder made to the last file removed."""
    context = multiprocessing.get_context("forkserver")  # its children begin without threads, and with our modules
    context.set_forkserver_preload(["taskgraph", "zarr", "scheduler_plugins", __name__])

    def child(moment: int, step: int) -> int:
        process = context.Process(target=save_and_die, args=(str(path), step, moment))
        process.start()
        process.join(60)
        assert process.exitcode is not None
        return process.exitcode

    path = tmp_path / "c"
    tg.save(path, state_of(0))
    moments = child(-1, 1)
    assert 30 < moments < 255
    old = 1
    found = set()
    for n, moment in enumerate(range(0, moments, 5)):
        new = n + 2
        assert child(moment, new) == -signal.SIGKILL
        now = step_of(path)
        assert now in (old, new)
        found.add(now == new)
        old = now
    assert found == {True, False}  # it was killed before and after the swap
    tg.save(path, state_of(1000))
    assert step_of(path) == 1000
    assert len(generations(path)) == 2  # the manifest and one generation: nothing is left of the dead


def test_a_first_save_that_was_killed_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "c" / "data-dead").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        tg.load(tmp_path / "c")
    tg.save(tmp_path / "c", state_of(1))
    assert step_of(tmp_path / "c") == 1
    assert len(generations(tmp_path / "c")) == 2


def test_a_client_killed_while_workers_write(cluster: Client, tmp_path: Path) -> None:
    """The workers go on, into a folder that nobody will speak of."""
    path = tmp_path / "c"
    tg.save(path, state_of(0))
    script = (
        "import sys, time, taskgraph as tg; from distributed import Client\n"
        "with Client(sys.argv[1]):\n"
        "    for step in range(1, 1000):\n"
        "        t = lambda *shape: tg.full(shape, float(step), chunks=2)\n"
        "        tg.save(sys.argv[2], {'step': step, 'w': t(4, 4), 'm': [tg.full((3,), float(step)), step]})\n"
        "        print(step, flush=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, cluster.scheduler.address, str(path)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "1\n"
    time.sleep(0.05)
    process.kill()
    said = [1, *map(int, process.communicate(timeout=20)[0].split())]
    assert step_of(path) in (said[-1], said[-1] + 1)
    tg.save(path, state_of(1000))
    assert step_of(path) == 1000


def test_loading_while_another_saves(tmp_path: Path) -> None:
    path = tmp_path / "c"
    tg.save(path, state_of(0))
    done = threading.Event()

    def saves() -> None:
        for step in range(1, 12):
            tg.save(path, state_of(step))
        done.set()

    thread = threading.Thread(target=saves)
    thread.start()
    seen = []
    while not done.is_set():
        seen.append(step_of(path))
    thread.join()
    assert seen == sorted(seen)
    assert step_of(path) == 11


# -- training ----------------------------------------------------------------------------------------------------------

TRAINING = """
import sys
import numpy as np
import taskgraph as tg

def loss_of(params, x, y):
    return tg.optim.softmax_cross_entropy(tg.tanh(x @ params["w1"]) @ params["w2"], y)

def train(first, steps, path=None, save_at=None):
    rng = np.random.default_rng(0)
    x, y = tg.asarray(rng.normal(size=(60, 8)), chunks=(25, 8)), tg.asarray(rng.integers(0, 3, 60), chunks=25)
    optimizer = tg.optim.chain(tg.optim.clip_by_global_norm(0.5), tg.optim.adamw(tg.optim.cosine(0.1, 10)))
    if first:
        at = tg.load(path)
    else:
        w1, w2 = rng.normal(size=(8, 5)), rng.normal(size=(5, 3))
        params = {"w1": tg.asarray(w1, chunks=((3, 5), 5)), "w2": tg.asarray(w2)}
        at = {"step": 0, "params": params, "state": optimizer.init(params)}
    for step in range(first, steps):
        params, state = at["params"], at["state"]
        grads = tg.gradients(loss_of(params, x, y), tg.tree.leaves(params))
        updates, state = optimizer.update(tg.tree.unflatten(params, grads), state, params)
        params, state = tg.tree.persist((tg.optim.apply_updates(params, updates), state))
        at = {"step": step + 1, "params": params, "state": state}
        if step + 1 == save_at:
            tg.save(path, at)
    return at

if __name__ == "__main__":
    if len(sys.argv) > 3:
        from distributed import Client
        Client(sys.argv[3])
    at = train(5, 10, sys.argv[1])
    np.savez(sys.argv[2], *tg.compute(*tg.tree.leaves((at["params"], at["state"]))))
"""


@pytest.mark.parametrize("where", ["local", "cluster"])
def test_resumed_training_continues_bit_for_bit(where: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Ten steps, saved at the fifth; five more from there in another process: every bit of parameters and state."""
    address = [request.getfixturevalue("cluster").scheduler.address] if where == "cluster" else []
    script = tmp_path / "training.py"
    script.write_text(TRAINING)
    namespace: dict[str, Any] = {"__name__": "training"}
    exec(TRAINING, namespace)
    whole = namespace["train"](0, 10, tmp_path / "c", save_at=5)
    expected = tg.tree.leaves(tg.tree.compute((whole["params"], whole["state"])))
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / "c"), str(tmp_path / "end.npz"), *address],
        check=True, timeout=60, env=environment,
    )  # fmt: skip
    with np.load(tmp_path / "end.npz") as end:
        found = [end[name] for name in end.files]
    assert len(found) == len(expected) == 8
    assert all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


# -- arrays of others --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [(2, 3), "auto", ((1, 4), (7,))])
def test_files_of_others(chunks: Any, tmp_path: Path) -> None:
    x = np.arange(35.0).reshape(5, 7)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    zarr.create_array(str(tmp_path / "x.zarr"), data=x, chunks=(2, 2))
    for t in (tg.from_npy(tmp_path / "x.npy", chunks=chunks), tg.from_zarr(tmp_path / "x.zarr", chunks=chunks)):
        assert same_bits(t.compute(), x)
        np.testing.assert_array_equal(tg.gradients(tg.sum(t * t), t).compute(), 2 * x)
    assert tg.from_zarr(tmp_path / "x.zarr").chunks == ((2, 2, 1), (2, 2, 2, 1))
    np.save(tmp_path / "s.npy", np.asarray(3.0))
    assert tg.from_npy(tmp_path / "s.npy").compute() == 3


def test_a_file_that_changed_is_another_array(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros(3))
    first = tg.from_npy(tmp_path / "x.npy")
    np.save(tmp_path / "x.npy", np.ones(4))
    assert first.to_dask().name != tg.from_npy(tmp_path / "x.npy").to_dask().name


def test_hdf5(tmp_path: Path) -> None:
    x = np.arange(35.0).reshape(5, 7)
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["plain"] = x
        file.create_dataset("deep/cut", data=x, chunks=(2, 3))
    assert tg.from_hdf5(tmp_path / "x.h5", "deep/cut").chunks == ((2, 2, 1), (3, 3, 1))
    for name in ("plain", "deep/cut"):
        assert same_bits(tg.from_hdf5(tmp_path / "x.h5", name, chunks=(4, 2)).compute(), x)
    with pytest.raises(KeyError, match=r"no dataset 'other'; at the top it has \['deep', 'plain'\]"):
        tg.from_hdf5(tmp_path / "x.h5", "other")
    with pytest.raises(TypeError, match=r"'deep' .* is a group of \['cut'\]"):
        tg.from_hdf5(tmp_path / "x.h5", "deep")


@pytest.mark.parametrize("shape", [(9, 7), (5,), (), (0, 3)], ids=str)
def test_to_zarr(shape: tuple[int, ...], tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    t = tg.asarray(x, chunks=4)
    (2 * t).to_zarr(tmp_path / "x.zarr")
    assert same_bits(zarr.open_array(str(tmp_path / "x.zarr"), mode="r")[...], 2 * x)
    assert same_bits(tg.from_zarr(tmp_path / "x.zarr").compute(), 2 * x)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        t.to_zarr(tmp_path / "x.zarr")
    t.to_zarr(tmp_path / "x.zarr", overwrite=True)
    assert same_bits(tg.from_zarr(tmp_path / "x.zarr").compute(), x)
    assert os.listdir(tmp_path) == ["x.zarr"]


def test_a_product_goes_from_file_to_file(cluster: Client, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(700, 500)), rng.normal(size=(500, 600))
    zarr.create_array(str(tmp_path / "a.zarr"), data=a, chunks=(100, 100))
    zarr.create_array(str(tmp_path / "b.zarr"), data=b, chunks=(128, 90))
    product = tg.from_zarr(tmp_path / "a.zarr") @ tg.from_zarr(tmp_path / "b.zarr")
    product.to_zarr(tmp_path / "c.zarr")
    np.testing.assert_allclose(zarr.open_array(str(tmp_path / "c.zarr"), mode="r")[...], a @ b, rtol=1e-12, atol=1e-12)


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    tg.ones(4, chunks=2).to_zarr(tmp_path / "x.zarr")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("No space left on device")

    with mock.patch.object(files, "sync", fail), pytest.raises(OSError, match="No space left"):
        tg.zeros(4, chunks=2).to_zarr(tmp_path / "x.zarr", overwrite=True, scheduler="synchronous")
    assert same_bits(tg.from_zarr(tmp_path / "x.zarr").compute(), np.ones(4))
    assert os.listdir(tmp_path) == ["x.zarr"]
