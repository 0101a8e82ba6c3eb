"""Random expression graphs, each beside the same computation in NumPy, evaluated as the graph is built.

A graph is drawn step by step: a step takes results of earlier steps (or new arrays that fit them) and makes a tensor,
and the same function of NumPy arrays makes its value. The functions are autograd's NumPy, so that gradients have a
reference that knows nothing of ours. What grows goes through a tanh.

How far two right values may be apart depends on the graph: a product of products magnifies rounding. So every graph is
evaluated a second time with random noise of the size of rounding behind each step (stochastic arithmetic; Vignes,
"A stochastic arithmetic for reliable scientific computation", 1993), and what that changes bounds what may differ.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import autograd.numpy as anp
import dask.array as da
import numpy as np
from autograd.core import make_vjp
from hypothesis import strategies as st

import taskgraph as tg

Draw = Callable[[st.SearchStrategy[Any]], Any]
Function = Callable[..., Any]

STEPS = 12
SIZES = (1, 2, 3, 4, 6, 8, 13, 24, 40, 40)
#: Half of all steps are free; "gpu:1" and "cpu+gpu" divide what a pin can mean.
PINS = (None, None, None, None, None, "cpu", "gpu", "gpu", "gpu:0", "gpu:1", "cpu+gpu")
_serial = itertools.count()
#: Above this a value goes through tanh.
TAME = 4.0


@dataclass(frozen=True)
class Node:
    """One result: how it was made (in words), our tensor, NumPy's value, and how to make that from its inputs'.

    noisy: the value once more, from noisy inputs and with the noise `noise` of its own. function is None for an array
    that was there. smooth: the gradient through it does not jump. second: it holds a gradient, or depends on one, and
    is not differentiated again.
    """

    text: str
    tensor: Any
    value: np.ndarray
    noisy: np.ndarray
    noise: Any = 0
    inputs: tuple[int, ...] = ()
    function: Function | None = None
    smooth: bool = True
    second: bool = False


@dataclass
class Graph:
    """A drawn graph; `roots` are the numbers of the nodes to compute."""

    draw: Draw = field(repr=False)
    nodes: list[Node] = field(default_factory=list)
    roots: tuple[int, ...] = ()

    def __repr__(self) -> str:
        lines = [f"  n{i} = {n.text}    # {n.value.dtype}{list(n.value.shape)}" for i, n in enumerate(self.nodes)]
        return "\n".join(["", *lines, f"  compute {', '.join(f'n{r}' for r in self.roots)}"])

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # how Hypothesis prints it
        printer.text(repr(self))

    @property
    def tensors(self) -> list[Any]:
        return [self.nodes[r].tensor for r in self.roots]

    @property
    def results(self) -> list[Node]:
        return [self.nodes[r] for r in self.roots]

    # -- arrays that are there

    def leaf(self, shape: Sequence[int], kinds: Sequence[str] = ("float64", "float32", "int64")) -> int:
        """A new array: data, random numbers, a Dask array, or data kept on the workers' side of a move."""
        shape = tuple(shape)
        dtype = np.dtype(self.draw(st.sampled_from(kinds)))
        seed = self.draw(st.integers(0, 2**16))
        how = self.draw(st.sampled_from(("data", "data", "random", "dask")))
        chunks = self.chunks(shape)
        pin = self.draw(st.sampled_from(PINS))
        with tg.device(pin) if pin else nullcontext():
            if how == "random" and dtype.kind == "f":
                t = tg.random.default_rng(seed).standard_normal(shape, dtype, chunks=chunks)
                params = {k: v for k, v in t.expr.params.items() if k != "id"}
                params.pop("chunks")
                assert t.expr.op.lower is not None
                value = t.expr.op.lower((0,) * len(shape), shape, **params)
            else:
                rng = np.random.default_rng(seed)
                drawn = rng.integers(-3, 4, shape) if dtype.kind == "i" else rng.standard_normal(shape)
                value = np.asarray(drawn).astype(dtype)
                if how == "dask":  # of a name of its own: one Dask array under two pins has but one set of tasks
                    t = tg.from_dask(da.from_array(value, chunks, name=f"theirs-{next(_serial)}"))
                else:
                    t = tg.asarray(value, chunks=chunks)
        where = f", device={pin!r}" if pin else ""
        self.nodes.append(Node(f"{how}(seed={seed}, chunks={chunks}{where})", t, value, value))
        return len(self.nodes) - 1

    def noise(self, value: np.ndarray, scale: float, eps: float) -> Any:
        """Of the size of rounding of numbers up to `scale`, with random signs; none for integers."""
        if value.dtype.kind != "f":
            return 0
        signs = np.random.default_rng(len(self.nodes)).choice([-1.0, 1.0], value.shape)
        return np.asarray(4 * eps * max(1.0, scale) * signs).astype(value.dtype)

    def chunks(self, shape: Sequence[int]) -> Any:
        cut = []
        for size in shape:
            parts = self.draw(st.sampled_from((1, 1, 2, 3)))
            inner = sorted({self.draw(st.integers(1, size - 1)) for _ in range(parts - 1)}) if size > 1 else []
            ends = [0, *inner, size]
            cut.append(tuple(b - a for a, b in itertools.pairwise(ends)))
        return tuple(cut)

    def size(self) -> int:
        return int(self.draw(st.sampled_from(SIZES)))

    def any(self, *ndims: int) -> int:
        """A node with one of these numbers of dimensions (any where none are given), or a new one."""
        fit = [i for i, n in enumerate(self.nodes) if not ndims or n.value.ndim in ndims]
        if fit and self.draw(st.integers(0, 7)):
            return int(self.draw(st.sampled_from(fit)))
        ndim = self.draw(st.sampled_from(ndims or (1, 2, 2, 2, 3)))
        return self.leaf([self.size() if ndim < 3 else self.draw(st.sampled_from(SIZES[:6])) for _ in range(ndim)])

    def like(self, shape: Sequence[int]) -> int:
        """A node of that shape, or a new one."""
        fit = [i for i, n in enumerate(self.nodes) if n.value.shape == tuple(shape)]
        return int(self.draw(st.sampled_from(fit))) if fit and self.draw(st.booleans()) else self.leaf(shape)

    # -- steps

    def add(self, text: str, ours: Function, numpys: Function, *inputs: int, smooth: bool = True) -> int:
        """A step: the same function of tensors and of arrays, pinned or not."""
        nodes = [self.nodes[i] for i in inputs]
        pin = self.draw(st.sampled_from(PINS))
        with tg.device(pin) if pin else nullcontext():
            t = ours(*[n.tensor for n in nodes])
        value = np.asarray(numpys(*[n.value for n in nodes]))
        assert value.size <= 2**16, (text, value.shape)
        words = text.format(*[f"n{i}" for i in inputs]) + (f"  [device {pin}]" if pin else "")
        scale = float(np.abs(value).max(initial=0))
        if scale > TAME:
            t, value, words, function = tg.tanh(t), np.asarray(np.tanh(value)), f"tanh({words})", tame(numpys)
        else:
            function = numpys
        like = f"{t.dtype}{list(t.shape)}", f"{value.dtype}{list(value.shape)}"
        assert like[0] == like[1], f"{words} is {like[0]}, NumPy's {like[1]}, in {self!r}"
        noise = self.noise(value, scale, np.finfo(value.dtype).eps if value.dtype.kind == "f" else 0)
        noisy = np.asarray(function(*[n.noisy for n in nodes]) + noise)
        second = any(n.second for n in nodes)
        self.nodes.append(Node(words, t, value, noisy, noise, inputs, function, smooth, second))
        return len(self.nodes) - 1

    # -- gradients

    def gradient(self) -> None:
        """The gradient of some node with respect to arrays that it is made of, where the reference knows it."""
        reach = [self.reached(i) for i in range(len(self.nodes))]
        fit = [i for i, xs in enumerate(reach) if xs and not self.nodes[i].second and self.nodes[i].function]
        if not fit:
            return
        y = int(self.draw(st.sampled_from(fit)))
        xs = sorted(self.draw(st.sets(st.sampled_from(reach[y]), min_size=1, max_size=2)))
        shape = self.nodes[y].value.shape
        ct = self.leaf(shape, kinds=[str(self.nodes[y].value.dtype)]) if self.draw(st.booleans()) else None
        seeds = None if ct is None else [self.nodes[ct].tensor]
        found = tg.gradients(self.nodes[y].tensor, [self.nodes[x].tensor for x in xs], seeds)
        weight = np.ones(shape, self.nodes[y].value.dtype) if ct is None else self.nodes[ct].value
        for x, t in zip(xs, found, strict=True):
            value, noisy = (self.pulled_back(y, x, weight, is_noisy) for is_noisy in (False, True))
            assert value.shape == self.nodes[x].value.shape == t.shape, self
            scale = float(np.abs(value).max(initial=0))
            if scale > TAME:
                t, value, noisy = tg.tanh(t), np.asarray(np.tanh(value)), np.asarray(np.tanh(noisy))
            noisy = noisy + self.noise(value, scale, coarsest(self))
            text = f"gradient of n{y} in n{x}, cotangent n{ct} (tanh of it where it is large)"
            self.nodes.append(Node(text, t, value, noisy, second=True))

    def pulled_back(self, y: int, x: int, weight: np.ndarray, is_noisy: bool) -> np.ndarray:
        """The reference's gradient."""
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            # a condition has no influence (and autograd says so); its tanh divides by cosh**2
            warnings.simplefilter("ignore", UserWarning)
            pull_back, _ = make_vjp(lambda v: self.replay(y, {x: v}, is_noisy), self.nodes[x].value)
            return np.asarray(pull_back(weight)).astype(self.nodes[x].value.dtype)

    def reached(self, y: int) -> list[int]:
        """The arrays in which node y may be differentiated: every way between them is smooth and of real numbers."""
        found = []
        for x, n in enumerate(self.nodes[: y + 1]):
            if n.function is None and not n.second and n.value.dtype.kind == "f":
                between = self.between(x, y)
                if y in between and all(
                    self.nodes[i].smooth and not self.nodes[i].second and self.nodes[i].value.dtype.kind == "f"
                    for i in between
                ):
                    found.append(x)
        return found

    def between(self, x: int, y: int) -> list[int]:
        depends, needed = {x}, {y}
        for i in range(x + 1, y + 1):
            if any(j in depends for j in self.nodes[i].inputs):
                depends.add(i)
        for i in range(y, x, -1):
            if i in needed:
                needed.update(self.nodes[i].inputs)
        return sorted((depends & needed) - {x})

    def replay(self, y: int, known: dict[int, Any], is_noisy: bool) -> Any:
        """The value of node y where some earlier ones have other values."""
        values = dict(known)
        for i in range(min(known) + 1, y + 1):
            n = self.nodes[i]
            if n.function is not None and any(j in values for j in n.inputs):
                others = {j: self.nodes[j].noisy if is_noisy else self.nodes[j].value for j in n.inputs}
                values[i] = n.function(*[values.get(j, others[j]) for j in n.inputs])
                if is_noisy:
                    values[i] = values[i] + n.noise
        return values[y]


# -- the operations ----------------------------------------------------------------------------------------------------


def tame(function: Function) -> Function:
    return lambda *x: anp.tanh(function(*x))


def turned(x: Any) -> Any:
    return x.mT if isinstance(x, tg.Tensor) else anp.swapaxes(x, -1, -2)


def either(name: str) -> Function:
    """The function of that name: ours of tensors, NumPy's of arrays."""
    return lambda *x, **kw: getattr(tg if isinstance(x[0], tg.Tensor) else anp, name)(*x, **kw)


def dot(axes: Any) -> Function:
    return lambda a, b: either("tensordot")(a, b, axes=axes)


def ein(subscripts: str) -> Function:
    return lambda *x: (tg if isinstance(x[0], tg.Tensor) else anp).einsum(subscripts, *x)


def numbered(text: str, function: Function, *shapes: str) -> tuple[str, Function, tuple[str, ...]]:
    return text, function, shapes


#: Forms of a product by the dimensions of the first operand, with the shapes of the others: m, k are the first one's,
#: p its leading axis, n is new.
PRODUCTS: dict[int, list[tuple[str, Function, tuple[str, ...]]]] = {
    1: [
        numbered("{} @ {}", lambda a, b: a @ b, "k"),
        numbered("{} @ {}", lambda a, b: a @ b, "kn"),
        numbered("outer({}, {})", either("outer"), "n"),
        numbered("einsum i,i->({}, {})", ein("i,i->"), "k"),
        numbered("einsum i,j->ij({}, {})", ein("i,j->ij"), "n"),
    ],
    2: [
        numbered("{} @ {}", lambda a, b: a @ b, "kn"),
        numbered("{} @ {}", lambda a, b: a @ b, "k"),
        numbered("{1} @ {0}", lambda a, b: b @ a, "m"),
        numbered("{1} @ {0}", lambda a, b: b @ a, "nm"),
        numbered("{}.T @ {}", lambda a, b: turned(a) @ b, "mn"),
        numbered("{} @ {}.T", lambda a, b: a @ turned(b), "nk"),
        numbered("{}.T @ {}.T", lambda a, b: turned(a) @ turned(b), "nm"),
        numbered("{0} @ {0}.T", lambda a: a @ turned(a)),
        numbered("{0}.T @ {0}", lambda a: turned(a) @ a),
        numbered("{} @ {} (stacked)", lambda a, b: a @ b, "2kn"),
        numbered("mm({}, {})", lambda a, b: tg.mm(a, b) if isinstance(a, tg.Tensor) else a @ b, "kn"),
        numbered("tensordot({}, {}, 1)", dot(1), "kn"),
        numbered("tensordot({}, {}, 2)", dot(2), "mk"),
        numbered("tensordot({}, {}, ((0,), (1,)))", dot(((0,), (1,))), "nm"),
        numbered("einsum ij,jk->ik({}, {})", ein("ij,jk->ik"), "kn"),
        numbered("einsum ij,kj->ki({}, {})", ein("ij,kj->ki"), "nk"),
        numbered("einsum ij,ij->i({}, {})", ein("ij,ij->i"), "mk"),
        numbered("einsum ij,jk,kl->il({}, {}, {})", ein("ij,jk,kl->il"), "kn", "nm"),
    ],
    3: [
        numbered("{} @ {}", lambda a, b: a @ b, "kn"),
        numbered("{} @ {}", lambda a, b: a @ b, "pkn"),
        numbered("{} @ {}", lambda a, b: a @ b, "1kn"),
        numbered("{0}.mT @ {0}", lambda a: turned(a) @ a),
        numbered("{} @ {}.mT", lambda a, b: a @ turned(b), "pnk"),
        numbered("tensordot({}, {}, 2)", dot(2), "mkn"),
        numbered("tensordot({}, {}, ((0, 2), (1, 0)))", dot(((0, 2), (1, 0))), "kpn"),
        numbered("einsum bij,bjk->bik({}, {})", ein("bij,bjk->bik"), "pkn"),
        numbered("einsum bij,bij->b({}, {})", ein("bij,bij->b"), "pmk"),
    ],
}


def product(g: Graph) -> None:
    """A product in one of its forms."""
    i = g.any(1, 2, 2, 2, 3)
    a = g.nodes[i].value
    sizes = {"k": a.shape[-1], "m": a.shape[-2] if a.ndim > 1 else 1, "p": a.shape[0], "1": 1, "2": 2}
    sizes["n"] = g.size() if a.ndim < 3 else g.draw(st.sampled_from(SIZES[:5]))
    text, function, shapes = g.draw(st.sampled_from(PRODUCTS[a.ndim]))
    others = [g.like([sizes[s] for s in shape]) for shape in shapes]
    g.add(text, function, function, i, *others)


UNARY: dict[str, tuple[Function, bool]] = {
    "tanh({})": (either("tanh"), True), "sin({})": (either("sin"), True), "cos({})": (either("cos"), True),
    "-{}": (lambda x: -x, True), "{} * 0.5": (lambda x: x * 0.5, True), "2 - {}": (lambda x: 2 - x, True),
    "{0} * {0}": (lambda x: x * x, True), "square({})": (either("square"), True), "abs({})": (either("abs"), False),
    "1 / (1 + {0} * {0})": (lambda x: 1 / (1 + x * x), True), "{}**2": (lambda x: x**2, True),
    "sqrt(1 + {0} * {0})": (lambda x: either("sqrt")(1 + x * x), True),
    "exp(-{0} * {0})": (lambda x: either("exp")(-x * x), True),
    "log1p({0} * {0})": (lambda x: either("log1p")(x * x), True),
}  # fmt: skip
BINARY: dict[str, tuple[Function, bool]] = {
    "{} + {}": (lambda x, y: x + y, True), "{} - {}": (lambda x, y: x - y, True), "{} * {}": (lambda x, y: x * y, True),
    "{0} / (1 + {1} * {1})": (lambda x, y: x / (1 + y * y), True),
    "maximum({}, {})": (either("maximum"), False), "minimum({}, {})": (either("minimum"), False),
}  # fmt: skip


def unary(g: Graph) -> None:
    """An elementwise function of one array."""
    text = g.draw(st.sampled_from(sorted(UNARY)))
    function, smooth = UNARY[text]
    g.add(text, function, function, g.any(), smooth=smooth)


def partner(g: Graph, shape: Sequence[int]) -> int:
    """Something that broadcasts with that shape: the same, a part of its axes, axes of one."""
    kept = shape[g.draw(st.integers(0, len(shape))) if g.draw(st.booleans()) else 0 :]
    return g.like([1 if g.draw(st.integers(0, 4)) == 0 else s for s in kept])


def binary(g: Graph) -> None:
    """An elementwise function of two arrays that broadcast."""
    text = g.draw(st.sampled_from(sorted(BINARY)))
    function, smooth = BINARY[text]
    i = g.any()
    pair = (i, partner(g, g.nodes[i].value.shape))
    g.add(text, function, function, *(pair if g.draw(st.booleans()) else pair[::-1]), smooth=smooth)


def where(g: Graph) -> None:
    """A choice by a condition on an array that was there (exact on both sides)."""
    i = g.any()
    shape = g.nodes[i].value.shape
    c = g.leaf(shape if g.draw(st.booleans()) else shape[-1:])

    def numpys(c: Any, x: Any, y: Any) -> Any:
        # autograd's `where` does not sum over the axes along which an operand was repeated
        full = np.broadcast_shapes(c.shape, x.shape, y.shape)
        return anp.where(c > 0, x + np.zeros(full, x.dtype), y + np.zeros(full, y.dtype))

    g.add("where({} > 0, {}, {})", lambda c, x, y: tg.where(c > 0, x, y), numpys, c, i, partner(g, shape))


REDUCTIONS = {"sum": True, "mean": True, "var": True, "max": False, "min": False}


def reduction(g: Graph) -> None:
    """A reduction over some axes."""
    i = g.any()
    ndim = g.nodes[i].value.ndim
    name = g.draw(st.sampled_from(sorted(REDUCTIONS)))
    axes = tuple(sorted(g.draw(st.sets(st.integers(0, ndim - 1), min_size=1)))) if ndim else None
    axis = g.draw(st.sampled_from((None, axes, axes[0], axes[-1] - ndim))) if axes else None
    keep = g.draw(st.booleans())
    function = lambda x: either(name)(x, axis=axis, keepdims=keep)
    g.add(f"{name}({{}}, axis={axis}, keepdims={keep})", function, function, i, smooth=REDUCTIONS[name])


def cumulative_sum(g: Graph) -> None:
    """Running sums along an axis."""
    i = g.any(1, 2, 3)
    axis = g.draw(st.integers(0, g.nodes[i].value.ndim - 1))
    g.add(
        f"cumulative_sum({{}}, axis={axis})",
        lambda x: tg.cumulative_sum(x, axis=axis),
        lambda x: anp.cumsum(x, axis=axis),
        i,
    )


def reshape(g: Graph) -> None:
    """The same elements in another shape: flat, factors regrouped, an axis put in."""
    i = g.any()
    shape = g.nodes[i].value.shape
    size = math.prod(shape)
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    d = g.draw(st.sampled_from(divisors))
    new = g.draw(st.sampled_from(((size,), (d, size // d), (*shape, 1), (1, *shape)[:4])))
    if len(new) <= 3:
        function = lambda x: either("reshape")(x, new)
        g.add(f"reshape({{}}, {new})", function, function, i)


def permute(g: Graph) -> None:
    """The axes in another order."""
    i = g.any(2, 3)
    axes = tuple(g.draw(st.permutations(range(g.nodes[i].value.ndim))))
    g.add(f"permute_dims({{}}, {axes})", lambda x: tg.permute_dims(x, axes), lambda x: anp.transpose(x, axes), i)


def join(g: Graph) -> None:
    """Two arrays joined along an axis, or stacked."""
    i = g.any(1, 2, 3)
    shape = g.nodes[i].value.shape
    axis = g.draw(st.integers(0, len(shape) - 1))
    if g.draw(st.booleans()) and len(shape) < 3:
        g.add(
            f"stack([{{}}, {{}}], axis={axis})",
            lambda x, y: tg.stack([x, y], axis=axis),
            lambda x, y: anp.stack([x, y], axis=axis),
            i,
            g.like(shape),
        )
    else:
        other = [g.size() if a == axis else s for a, s in enumerate(shape)]
        g.add(
            f"concat([{{}}, {{}}], axis={axis})",
            lambda x, y: tg.concat([x, y], axis=axis),
            lambda x, y: anp.concatenate([x, y], axis=axis),
            i,
            g.like(other),
        )


def getitem(g: Graph) -> None:
    """Basic indexing with steps of both signs, numbers and new axes; never empty."""
    i = g.any(1, 2, 3)
    index: list[Any] = []
    for size in g.nodes[i].value.shape:
        how = g.draw(st.sampled_from(("all", "slice", "slice", "number")))
        at = g.draw(st.integers(0, size - 1))
        if how == "number":
            index.append(at - size if g.draw(st.booleans()) else at)
        elif how == "slice":
            step = g.draw(st.sampled_from((1, 2, 3, -1, -2)))
            end = g.draw(st.integers(at + 1, size)) if step > 0 else g.draw(st.sampled_from((None, *range(at))))
            index.append(slice(at, end, step))
        else:
            index.append(slice(None))
    kept = sum(isinstance(x, slice) for x in index)
    if kept < 3 and g.draw(st.integers(0, 3)) == 0:
        index.insert(g.draw(st.integers(0, len(index))), None)
    key = tuple(index)
    g.add(f"{{}}[{key}]", lambda x: x[key], lambda x: x[key], i)


def moved(g: Graph) -> None:
    """flip, roll, broadcast_to, triangles, another cut, another device."""
    i = g.any(2, 3)
    shape = g.nodes[i].value.shape
    axis = g.draw(st.integers(0, len(shape) - 1))
    shift = g.draw(st.integers(-5, 5))
    chunks = g.chunks(shape)
    k = g.draw(st.integers(-2, 2))
    wide = (2, *shape)
    back = (*[slice(None)] * axis, slice(None, None, -1))
    choices: list[tuple[str, Function, Function]] = [
        (f"flip({{}}, axis={axis})", lambda x: tg.flip(x, axis=axis), lambda x: x[back]),
        (
            f"roll({{}}, {shift}, axis={axis})",
            lambda x: tg.roll(x, shift, axis=axis),
            lambda x: anp.roll(x, shift, axis=axis),
        ),
        (f"tril({{}}, k={k})", lambda x: tg.tril(x, k=k), lambda x: x * np.tri(shape[-2], shape[-1], k, x.dtype)),
        (f"{{}}.rechunk({chunks})", lambda x: x.rechunk(chunks), lambda x: x),
        ("{}.cpu()", lambda x: x.cpu(), lambda x: x),
        ("{}.cuda(1)", lambda x: x.cuda(1), lambda x: x),
    ]
    if len(shape) < 3:
        ones = lambda x: x * np.ones(wide, x.dtype)
        choices.append((f"broadcast_to({{}}, {wide})", lambda x: tg.broadcast_to(x, wide), ones))
    text, ours, numpys = g.draw(st.sampled_from(choices))
    g.add(text, ours, numpys, i)


def astype(g: Graph) -> None:
    """Another type of real numbers."""
    dtype = g.draw(st.sampled_from(("float32", "float64")))
    g.add(f"{{}}.astype({dtype})", lambda x: x.astype(dtype), lambda x: x.astype(dtype), g.any())


#: Products are a third of all steps.
OPERATIONS = (
    product, product, product, product, product, product, unary, unary, unary, binary, binary, binary, where, reduction,
    reduction, cumulative_sum, reshape, permute, join, getitem, moved, astype,
)  # fmt: skip


@st.composite
def graphs(draw: Draw) -> Graph:
    """Compositions of up to 12 drawn operations, with gradients of some results, computed together."""
    g = Graph(draw)
    g.leaf([g.size(), g.size()], ("float64", "float32"))
    for _ in range(draw(st.integers(1, STEPS))):
        if draw(st.integers(0, 6)) == 0:
            g.gradient()
        else:
            draw(st.sampled_from(OPERATIONS))(g)
    if draw(st.booleans()):
        product(g)
    last = len(g.nodes) - 1
    others = draw(st.sets(st.integers(0, last), max_size=2))
    g.roots = (last, *sorted(others - {last}))
    return g


def coarsest(g: Graph) -> float:
    """The rounding unit of the coarsest type in the graph."""
    return float(max(np.finfo(n.value.dtype).eps for n in g.nodes if n.value.dtype.kind == "f"))


def tolerance(n: Node) -> float:
    """How far a right value may be from NumPy's: what noise of the size of rounding changes, with room to spare."""
    if n.value.dtype.kind != "f":
        return 0.0
    rounding = np.finfo(n.value.dtype).eps * max(1.0, np.abs(n.value).max(initial=0.0))
    return float(30 * (rounding + np.abs(n.noisy - n.value).max(initial=0.0)))
