"""Orthogonal factorizations: qr, eigenvalues of symmetric matrices, singular values.

The rules are those of Walter & Lehmann (Algorithmic differentiation of linear algebra functions, 2010) for qr, of Giles
(2008) for eigenvalues and of Townsend (Differentiating the singular value decomposition, 2016). They call public
operations, so they hold to any order. Where singular or eigenvalues are equal (or a singular value is zero) the vectors
have no derivative: what depends on them gets inf or nan there, what depends on the values alone its right gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from taskgraph.expr import Shape
from taskgraph.ops.create import filled, scalar, tril
from taskgraph.ops.elementwise import equal, logical_and, logical_or, reciprocal, where
from taskgraph.ops.matrices import cost_of, diagonal, infer_by_matrix, lower_by_matrix, real, square, whole
from taskgraph.ops.shape import concat, expand_dims
from taskgraph.ops.shape import matrix_transpose as mt
from taskgraph.ops.solving import on_diagonal, solve, symmetric
from taskgraph.primitives import primitive
from taskgraph.tensor import Tensor, apply


class QRResult(NamedTuple):
    """An orthonormal and an upper triangular factor."""

    Q: Tensor
    R: Tensor


class EighResult(NamedTuple):
    """Eigenvalues, ascending, and the eigenvectors in columns."""

    eigenvalues: Tensor
    eigenvectors: Tensor


class SVDResult(NamedTuple):
    """Left singular vectors in columns, singular values, descending, and right singular vectors in rows."""

    U: Tensor
    S: Tensor
    Vh: Tensor


# -- what the rules are made of ----------------------------------------------------------------------------------------


def _columns(x: Tensor) -> Tensor:
    """A vector for each matrix, as what multiplies its columns."""
    return expand_dims(x, axis=-2)


def _diagonal_matrix(x: Tensor) -> Tensor:
    return where(on_diagonal(x.shape[-1]), _columns(x), scalar(0, x.dtype))


def _over(x: Tensor, by: Tensor, nothing: Tensor | None = None) -> Tensor:
    """x / by, with 0 / 0 as 0, and 0 for whatever is divided by 0 at `nothing`: without a NaN in its derivatives."""
    none = equal(x, 0) if nothing is None else logical_or(equal(x, 0), nothing)
    none = logical_and(equal(by, 0), none)
    return x * where(none, scalar(0, x.dtype), reciprocal(where(none, scalar(1, x.dtype), by)))


def _over_gaps(x: Tensor, w: Tensor) -> Tensor:
    """x[i, j] / (w[j] - w[i]), and 0 on the diagonal."""
    return _over(x, _columns(w) - expand_dims(w, axis=-1), on_diagonal(w.shape[-1]))


def _off_space(q: Tensor, x: Tensor) -> Tensor:
    """(I - q q') x: the part of x off the space of q's columns; nothing is where q is square."""
    return filled(x, 0) if q.shape[-1] == q.shape[-2] else x - q @ (mt(q) @ x)


# -- qr ----------------------------------------------------------------------------------------------------------------


def _qr_kernel(xp: Any, x: Any) -> Any:
    return xp.concat(tuple(xp.linalg.qr(x, mode="reduced")), axis=-2)


def _qr_core(x: Shape) -> Shape:
    return x[0] + x[1], x[1]


def _qr_vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    m = x.shape[-2]
    q, r, of_q, of_r = out[..., :m, :], out[..., m:, :], ct[..., :m, :], ct[..., m:, :]
    s = r @ mt(of_r) - mt(of_q) @ q
    both = tril(s) + mt(tril(s, k=-1))
    return (mt(solve(r, mt(of_q + q @ both))),)


def _qr_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor:
    m = x.shape[-2]
    q, r = out[..., :m, :], out[..., m:, :]
    moved = mt(solve(mt(r), mt(ts[0])))
    c = mt(q) @ moved
    upper = c - tril(c, k=-1) + mt(tril(c, k=-1))  # c without a rotation of q: its lower triangle is zeros
    return concat([moved - q @ upper, upper @ r], axis=-2)


#: q over r, of a matrix that has at least as many rows as columns.
QR = primitive(
    "qr",
    kind="array",
    infer=infer_by_matrix(_qr_core),
    lower=lower_by_matrix(_qr_kernel, _qr_core),
    vjp=_qr_vjp,
    jvp=_qr_jvp,
    flops=cost_of(lambda m, n: 4 * m * n**2 - 4 * n**3 / 3),
)


def qr(x: Any, /, *, mode: str = "reduced") -> QRResult:
    """x = Q @ R with Q (..., m, k) orthonormal and R (..., k, n) upper triangular, k = min(m, n).

    mode: "reduced" alone. Differentiable where the first k columns are independent. Raises ValueError for another mode
    and for what has less than two axes.

    >>> import taskgraph as tg
    >>> q, r = tg.linalg.qr(tg.ones((4, 2), chunks=2))
    >>> q.shape, r.shape, (q @ r).compute().round(12).tolist()[0]
    ((4, 2), (2, 2), [1.0, 1.0])
    """
    if mode != "reduced":
        raise ValueError(f'qr: mode is "reduced", not {mode!r}')
    x = whole("qr", real("qr", x))
    m, n = x.shape[-2:]
    packed = apply(QR, x[..., :m])
    q, r = packed[..., :m, :], packed[..., m:, :]
    return QRResult(q, r if m >= n else concat([r, mt(q) @ x[..., m:]], axis=-1))


# -- eigenvalues -------------------------------------------------------------------------------------------------------


def _eigh_kernel(xp: Any, x: Any) -> Any:
    w, v = xp.linalg.eigh(x)
    return xp.concat([w[..., None, :], v], axis=-2)


def _eigh_core(x: Shape) -> Shape:
    return x[0] + 1, x[1]


def _eigh_vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    w, v = out[..., 0, :], out[..., 1:, :]
    inner = _diagonal_matrix(ct[..., 0, :]) + _over_gaps(mt(v) @ ct[..., 1:, :], w)
    return (symmetric(v @ inner @ mt(v)),)


def _eigh_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor:
    w, v = out[..., 0, :], out[..., 1:, :]
    p = mt(v) @ symmetric(ts[0]) @ v
    return concat([_columns(diagonal(p)), v @ _over_gaps(p, w)], axis=-2)


#: Eigenvalues over eigenvectors; of the lower triangle, with derivatives along symmetric matrices.
EIGH = primitive(
    "eigh",
    kind="array",
    infer=infer_by_matrix(_eigh_core),
    lower=lower_by_matrix(_eigh_kernel, _eigh_core),
    vjp=_eigh_vjp,
    jvp=_eigh_jvp,
    flops=cost_of(lambda n, _: 9 * n**3),
)


def eigh(x: Any, /) -> EighResult:
    """Eigenvalues (..., n), ascending, and eigenvectors (..., n, n) of symmetric x, read in the lower triangle.

    The vectors have a derivative where the eigenvalues differ, and are known up to their signs. Raises ValueError where
    x is not square, at run LinAlgError where NumPy's iteration does not converge.
    """
    return _eigh("eigh", x)


def _eigh(name: str, x: Any) -> EighResult:
    packed = apply(EIGH, square(name, real(name, x)))
    return EighResult(packed[..., 0, :], packed[..., 1:, :])


def eigvalsh(x: Any, /) -> Tensor:
    """The eigenvalues of `eigh`, which have their gradients also where some are equal."""
    return _eigh("eigvalsh", x).eigenvalues


# -- singular values ---------------------------------------------------------------------------------------------------


def _svd_kernel(xp: Any, x: Any) -> Any:
    u, s, vh = xp.linalg.svd(x, full_matrices=False)
    return xp.concat([u, s[..., None, :], xp.matrix_transpose(vh)], axis=-2)


def _svd_core(x: Shape) -> Shape:
    return x[0] + 1 + x[1], min(x)


def _svd_parts(packed: Tensor, m: int) -> tuple[Tensor, Tensor, Tensor]:
    return packed[..., :m, :], packed[..., m, :], packed[..., m + 1 :, :]


def _svd_vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor]:
    (u, s, v), (of_u, of_s, of_v) = _svd_parts(out, x.shape[-2]), _svd_parts(ct, x.shape[-2])
    row, column = _columns(s), expand_dims(s, axis=-1)
    a, b = mt(u) @ of_u, mt(v) @ of_v
    inner = _over_gaps(a - mt(a), s * s) * row + _diagonal_matrix(of_s) + column * _over_gaps(b - mt(b), s * s)
    sides = _over(_off_space(u, of_u), row) @ mt(v) + u @ mt(_over(_off_space(v, of_v), row))
    return (u @ inner @ mt(v) + sides,)


def _svd_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor:
    u, s, v = _svd_parts(out, x.shape[-2])
    row, column = _columns(s), expand_dims(s, axis=-1)
    to_v, to_u = ts[0] @ v, mt(ts[0]) @ u
    p = mt(u) @ to_v
    du = u @ _over_gaps(p * row + column * mt(p), s * s) + _over(_off_space(u, to_v), row)
    dv = v @ _over_gaps(column * p + mt(p) * row, s * s) + _over(_off_space(v, to_u), row)
    return concat([du, _columns(diagonal(p)), dv], axis=-2)


#: u over the singular values over the transpose of vh.
SVD = primitive(
    "svd",
    kind="array",
    infer=infer_by_matrix(_svd_core),
    lower=lower_by_matrix(_svd_kernel, _svd_core),
    vjp=_svd_vjp,
    jvp=_svd_jvp,
    flops=cost_of(lambda m, n: 14 * max(m, n) * min(m, n) ** 2 + 8 * min(m, n) ** 3),
)


def svd(x: Any, /, *, full_matrices: bool = False) -> SVDResult:
    """x = U @ diag(S) @ Vh with U (..., m, k), S (..., k) descending, Vh (..., k, n), k = min(m, n).

    full_matrices: False alone (the standard's default is True, whose further vectors are arbitrary). The vectors have a
    derivative where the singular values differ and are not zero, and are known up to their signs. Raises ValueError for
    True and for what has less than two axes.
    """
    if full_matrices:
        raise ValueError("svd: full_matrices=True is not supported, the vectors beyond the first k are arbitrary")
    return _svd("svd", x)


def _svd(name: str, x: Any) -> SVDResult:
    x = whole(name, real(name, x))
    u, s, v = _svd_parts(apply(SVD, x), x.shape[-2])
    return SVDResult(u, s, mt(v))


def svdvals(x: Any, /) -> Tensor:
    """The singular values (..., min(m, n)) of x (..., m, n), descending; ValueError for less than two axes.

    >>> import taskgraph as tg
    >>> tg.linalg.svdvals(tg.asarray([[0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])).compute()
    array([2., 1.])
    """
    return _svd("svdvals", x).S
