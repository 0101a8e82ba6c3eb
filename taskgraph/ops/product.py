"""Products: matmul, and what reduces to it.

Design note. One primitive, `matmul` of at least two axes a side with a transpose flag each, carries all the work;
tensordot and the pairs of an einsum that sum over a shared letter become one. So the plan, the tile kernels and the
gradient know one operation. The gradient of a product is two products with the flags set: no transpose is ever stored
for it. What has no matrix in it (vecdot, outer, pairs that sum over nothing) is elementwise work and sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import opt_einsum

from taskgraph.chunks import unify
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.ops.arguments import array, integers
from taskgraph.ops.create import EYE, scalar
from taskgraph.ops.elementwise import cast, conjugate, multiply, where
from taskgraph.ops.reduce import sum as sum_
from taskgraph.ops.shape import expand_dims, permute_dims, reshape, squeeze
from taskgraph.primitives import primitive
from taskgraph.tensor import Tensor, apply


def rows(node_shape: Sequence[Any], transpose: bool) -> tuple[Any, Any]:
    """(outer, inner) sizes or blocks of a left operand; of a right one with the flag turned over.

    >>> rows((5, 2, 3), transpose=True)
    (3, 2)
    """
    return (node_shape[-1], node_shape[-2]) if transpose else (node_shape[-2], node_shape[-1])


def _infer_matmul(a: Expr, b: Expr, ta: bool, tb: bool) -> tuple[Shape, DType, Chunks]:
    m, k = rows(a.shape, ta)
    n, k2 = rows(b.shape, not tb)
    if k != k2:
        raise ValueError(f"matmul: inner sizes differ: {describe(a)}, {describe(b)}; {k} != {k2}")
    try:
        batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    except ValueError:
        raise ValueError(f"matmul: leading shapes do not broadcast: {describe(a)}, {describe(b)}") from None
    lead = unify(batch, [(x.shape[:-2], x.chunks[:-2]) for x in (a, b)])
    return (*batch, m, n), a.dtype, (*lead, rows(a.chunks, ta)[0], rows(b.chunks, not tb)[0])


def inner_size(node: Expr) -> int:
    """k of a product (m, k) @ (k, n)."""
    return int(rows(node.inputs[0].shape, node.params["ta"])[1])


def _vjp(ct: Tensor, out: Tensor, a: Tensor, b: Tensor, ta: bool, tb: bool) -> tuple[Tensor, Tensor]:
    da = product(b, ct, tb, True) if ta else product(ct, b, False, not tb)
    db = product(ct, a, True, ta) if tb else product(a, ct, not ta, False)
    return da, db


def _jvp(ts: Sequence[Tensor | None], out: Tensor, a: Tensor, b: Tensor, ta: bool, tb: bool) -> Tensor | None:
    left = None if ts[0] is None else product(ts[0], b, ta, tb)
    right = None if ts[1] is None else product(a, ts[1], ta, tb)
    return left + right if left is not None and right is not None else left if right is None else right


MATMUL = primitive(
    "matmul",
    kind="product",
    infer=_infer_matmul,
    vjp=_vjp,
    jvp=_jvp,
    flops=lambda node: 2 * node.size * inner_size(node),
)


def product(a: Tensor, b: Tensor, ta: bool = False, tb: bool = False) -> Tensor:
    """op(a) @ op(b), where op transposes the last two axes if the flag is set; both have two axes at least."""
    return apply(MATMUL, a, b, ta=ta, tb=tb)


def _operands(name: str, a: Any, b: Any) -> tuple[Tensor, Tensor]:
    a, b = array(name, a), array(name, b)
    dtype = np.result_type(a.dtype, b.dtype)
    if 0 in (a.ndim, b.ndim):
        raise ValueError(f"{name}: needs arrays of one dimension at least: {describe(a.expr)}, {describe(b.expr)}")
    return cast(a, dtype), cast(b, dtype)


def matmul(x1: Any, x2: Any, /) -> Tensor:
    """The matrix product, as `numpy.matmul`: vectors are rows or columns, leading axes broadcast.

    Raises ValueError, naming both operands, where the inner sizes differ.
    """
    a, b = _operands("matmul", x1, x2)
    left = expand_dims(a, axis=0) if a.ndim == 1 else a
    right = expand_dims(b, axis=1) if b.ndim == 1 else b
    c = product(left, right)
    if b.ndim == 1:
        c = squeeze(c, axis=-1)
    return squeeze(c, axis=-1 if b.ndim == 1 else -2) if a.ndim == 1 else c


def mm(x1: Any, x2: Any, /) -> Tensor:
    """The product of two matrices, as `torch.mm`; ValueError where either is no matrix."""
    a, b = _operands("mm", x1, x2)
    if (a.ndim, b.ndim) != (2, 2):
        raise ValueError(f"mm: needs two matrices: {describe(a.expr)}, {describe(b.expr)}; see matmul")
    return product(a, b)


def _axes_of(name: str, axes: Any, a: Tensor, b: Tensor) -> tuple[list[int], list[int]]:
    if isinstance(axes, int | np.integer):
        if not 0 <= axes <= min(a.ndim, b.ndim):
            raise ValueError(f"{name}: axes={axes} for {describe(a.expr)}, {describe(b.expr)}")
        of_a, of_b = list(range(a.ndim - int(axes), a.ndim)), list(range(int(axes)))
    elif not isinstance(axes, Sequence) or isinstance(axes, str) or len(axes) != 2:
        raise ValueError(f"{name}: axes is a number or a pair of sequences, not {axes!r}")
    else:
        of_a, of_b = (list(integers(f"{name}: axes", x)) for x in axes)
    for of, t in ((of_a, a), (of_b, b)):
        for x in of:
            if not -t.ndim <= x < t.ndim:
                raise ValueError(f"{name}: axis {x} is out of bounds: {describe(t.expr)}")
    of_a, of_b = [x % a.ndim for x in of_a], [x % b.ndim for x in of_b]
    if len(set(of_a)) != len(of_a) or len(set(of_b)) != len(of_b):
        raise ValueError(f"{name}: an axis stands twice in {axes}")
    if len(of_a) != len(of_b) or any(a.shape[x] != b.shape[y] for x, y in zip(of_a, of_b, strict=True)):
        raise ValueError(f"{name}: sizes differ along axes {axes}: {describe(a.expr)}, {describe(b.expr)}")
    return of_a, of_b


def tensordot(x1: Any, x2: Any, /, *, axes: Any = 2) -> Tensor:
    """Sum of products over the axes named: a number (that many, last of x1 with first of x2) or a pair of sequences."""
    a, b = array("tensordot", x1), array("tensordot", x2)
    dtype = np.result_type(a.dtype, b.dtype)
    a, b = cast(a, dtype), cast(b, dtype)
    of_a, of_b = _axes_of("tensordot", axes, a, b)
    free_a = [x for x in range(a.ndim) if x not in of_a]
    free_b = [x for x in range(b.ndim) if x not in of_b]
    k = math.prod(a.shape[x] for x in of_a)
    left = reshape(permute_dims(a, free_a + of_a), (math.prod(a.shape[x] for x in free_a), k))
    right = reshape(permute_dims(b, of_b + free_b), (k, math.prod(b.shape[x] for x in free_b)))
    return reshape(product(left, right), [a.shape[x] for x in free_a] + [b.shape[x] for x in free_b])


def vecdot(x1: Any, x2: Any, /, *, axis: int = -1) -> Tensor:
    """Inner products of vectors along `axis`, the first one conjugated; the other axes broadcast."""
    a, b = _operands("vecdot", x1, x2)
    (axis,) = integers("vecdot: axis", axis)
    if not -min(a.ndim, b.ndim) <= axis < 0:
        raise ValueError(f"vecdot: axis is negative, within both arrays: {axis}")
    if a.shape[axis] != b.shape[axis]:
        raise ValueError(f"vecdot: sizes differ along axis {axis}: {describe(a.expr)}, {describe(b.expr)}")
    return _sum(multiply(conjugate(a), b), (axis,))


def _sum(t: Tensor, axes: Sequence[int]) -> Tensor:
    """A sum in the elements' own type, as NumPy's products: small integers wrap around, booleans say whether any is."""
    return sum_(t, axis=tuple(axes), dtype=t.dtype) if axes else t


def outer(x1: Any, x2: Any, /) -> Tensor:
    """All products of an element of one vector with an element of the other."""
    a, b = _operands("outer", x1, x2)
    if (a.ndim, b.ndim) != (1, 1):
        raise ValueError(f"outer: needs two vectors: {describe(a.expr)}, {describe(b.expr)}")
    return multiply(expand_dims(a, axis=1), expand_dims(b, axis=0))


# -- einsum ------------------------------------------------------------------------------------------------------------


def einsum(subscripts: str, /, *operands: Any) -> Tensor:
    """Sum of products in Einstein's notation, as `numpy.einsum`, with the order of products that costs least.

    The order is opt_einsum's (Smith & Gray, JOSS 2018); every step is one product or an elementwise multiplication, so
    it is planned, placed and differentiated like any other.

    >>> import taskgraph as tg
    >>> tg.einsum("ij,jk,k->i", tg.ones((2, 3)), tg.ones((3, 4)), tg.ones(4)).compute()
    array([12., 12.])
    """
    ts = [array("einsum", x) for x in operands]
    if not ts:
        raise ValueError("einsum: needs at least one array")
    dtype = np.result_type(*[t.dtype for t in ts])
    ts = [cast(t, dtype) for t in ts]
    try:
        inputs, output, _ = opt_einsum.parser.parse_einsum_input((subscripts, *[t.shape for t in ts]), shapes=True)
        steps = opt_einsum.contract_path(subscripts, *[t.shape for t in ts], shapes=True)[0]
    except (ValueError, KeyError, IndexError, TypeError) as e:
        shapes = ", ".join(describe(t.expr) for t in ts)
        raise ValueError(f"einsum: {subscripts!r} does not fit {shapes}: {e}") from None
    terms = [_diagonals(s, t) for s, t in zip(inputs.split(","), ts, strict=True)]
    wide = {c for s, t in terms for c, size in zip(s, t.shape, strict=True) if size != 1}
    terms = [_without_ones(s, t, wide) for s, t in terms]
    for step in steps:
        taken = [terms.pop(i) for i in sorted(step, reverse=True)]
        needed = set(output).union(*[s for s, _ in terms]) if terms else set(output)
        while len(taken) > 1:
            (sa, a), (sb, b) = taken.pop(), taken.pop()
            later = needed.union(*[s for s, _ in taken]) if taken else needed
            taken.append(_contract(sa, a, sb, b, later))
        s, t = taken[0]
        terms.append((_keep(s, needed), _sum(t, _gone(s, needed))))
    (s, t), = terms  # fmt: skip
    return permute_dims(t, [s.index(c) for c in output])


def _gone(s: str, needed: set[str]) -> tuple[int, ...]:
    return tuple(i for i, c in enumerate(s) if c not in needed)


def _keep(s: str, needed: set[str]) -> str:
    return "".join(c for c in s if c in needed)


def _diagonals(s: str, t: Tensor) -> tuple[str, Tensor]:
    """A letter that stands twice in one operand takes its diagonal: zeros are put off it, and it is summed."""
    for c in dict.fromkeys(s):
        while s.count(c) > 1:
            i = s.index(c)
            j = s.index(c, i + 1)
            if t.shape[i] != t.shape[j]:
                raise ValueError(f"einsum: sizes along {c!r} differ: {describe(t.expr)}")
            shape = (t.shape[i], t.shape[j])
            on = apply(EYE, shape=shape, dtype=np.dtype(bool), chunks=(t.chunks[i], t.chunks[j]), k=0)
            on = reshape(on, [n if x in (i, j) else 1 for x, n in enumerate(t.shape)])
            t = _sum(where(on, t, scalar(0, t.dtype)), (j,))
            s = s[:j] + s[j + 1 :]
    return s, t


def _without_ones(s: str, t: Tensor, wide: set[str]) -> tuple[str, Tensor]:
    """Without the axes of size 1 along which the operand is repeated for the others."""
    ones = [i for i, c in enumerate(s) if c in wide and t.shape[i] == 1]
    return "".join(c for i, c in enumerate(s) if i not in ones), squeeze(t, ones)


def _contract(sa: str, a: Tensor, sb: str, b: Tensor, needed: set[str]) -> tuple[str, Tensor]:
    """One pair: letters summed in one operand alone go first, then shared ones are a product's inner size."""
    for_a, for_b = needed | set(sb), needed | set(sa)
    a, sa = _sum(a, _gone(sa, for_a)), _keep(sa, for_a)
    b, sb = _sum(b, _gone(sb, for_b)), _keep(sb, for_b)
    inner = [c for c in sa if c in sb and c not in needed]
    batch = [c for c in sa if c in sb and c in needed]
    left, right = [c for c in sa if c not in sb], [c for c in sb if c not in sa]
    result = "".join(batch + left + right)
    a = permute_dims(a, [sa.index(c) for c in batch + left + inner])
    b = permute_dims(b, [sb.index(c) for c in batch + inner + right])
    nb, nl = len(batch), len(left)
    shapes = a.shape[:nb], a.shape[nb : nb + nl], b.shape[nb + len(inner) :]
    if not inner:
        wide = reshape(a, (*a.shape, *[1] * len(right)))
        return result, wide * reshape(b, (*shapes[0], *[1] * nl, *shapes[2]))
    k = math.prod(a.shape[nb + nl :])
    c = product(reshape(a, (*shapes[0], math.prod(shapes[1]), k)), reshape(b, (*shapes[0], k, math.prod(shapes[2]))))
    return result, reshape(c, shapes[0] + shapes[1] + shapes[2])


__all__ = ["einsum", "matmul", "mm", "outer", "tensordot", "vecdot"]
