"""Derivatives of complex numbers: the convention, and compositions against another implementation, HIPS autograd, whose
convention (the tutorial's "Complex numbers") is ours and JAX's."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import array_api_strict
import autograd
import autograd.numpy as anp
import dask
import numpy as np
import pytest

import taskgraph as tg

RNG = np.random.default_rng(11)


def complexes(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)


X, W = RNG.standard_normal(8), RNG.standard_normal((8, 5))
Z, U, A, B = complexes(8), complexes(5), complexes(8, 5), complexes(5, 5)
H = B + B.conj().T


def value(t: Any) -> np.ndarray:
    return np.asarray(tg.asarray(t).compute(scheduler="synchronous"))


# -- against autograd --------------------------------------------------------------------------------------------------


def _energy(xp: Any, z: Any) -> Any:
    """|z|^2, summed."""
    return xp.sum(xp.abs(z) ** 2)


def _smoothed(xp: Any, image: Any, kernel: Any) -> Any:
    wide = _join(xp)([kernel, np.zeros(4)])  # autograd's own gradient of rfft(kernel, n=8) is wrong
    return xp.fft.irfft(xp.fft.rfft(image) * xp.fft.rfft(wide), n=8)


def _nufft_like(xp: Any, x: Any, z: Any) -> Any:
    """A sum of waves at places that are learned."""
    waves = xp.exp(1j * xp.outer(x, xp.fft.fftfreq(5)))
    return _energy(xp, waves @ (waves.T @ z))


def _evolved(xp: Any, times: Any, psi: Any) -> Any:
    """The chance to find a state in a place after steps exp(-i H t), by their series: unitary but for its end."""
    for n in range(3):
        term = psi
        for k in range(1, 9):
            term = (-1j * times[n] * 0.1 / k) * (H_OF[xp] @ term)
            psi = psi + term
    return xp.abs(psi[1]) ** 2 / _energy(xp, psi)


def _crank_nicolson(xp: Any, hamiltonian: Any, psi: Any) -> Any:
    """A step that is unitary for a Hermitian matrix, made so from any."""
    h = hamiltonian + xp.conj(hamiltonian.T)
    eye = xp.eye(5)
    after = xp.linalg.solve(eye + 0.05j * h, (eye - 0.05j * h) @ psi)
    return xp.real(xp.sum(xp.conj(after[:2]) * psi[:2])) + xp.abs(after[3])


H_OF = {tg: H, anp: H}

#: A real loss of each, as `f(xp, *arrays)`, and the arrays.
LOSSES: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "power spectrum": (lambda xp, z: _energy(xp, xp.fft.fft(z)), (Z,)),
    "power spectrum of reals": (lambda xp, x: xp.sum(xp.abs(xp.fft.fft(x)) ** 4) / 100, (X,)),
    "amplitudes": (lambda xp, z: xp.sum(xp.abs(xp.fft.fftn(z, axes=(0, 1)))), (A,)),
    "phase retrieval": (
        lambda xp, z, a: xp.sum((xp.abs(xp.fft.ifft(a @ z)) - 0.3) ** 2), (U, A),
    ),
    "deconvolution": (
        lambda xp, image, kernel: xp.sum((_smoothed(xp, image, kernel) - X[::-1]) ** 2), (X, X[:4] + 1),
    ),
    "deconvolution in two dimensions": (
        lambda xp, image, kernel: xp.sum(
            (xp.fft.irfftn(xp.fft.rfftn(image, axes=(1, 0)) * kernel[:5], s=(4, 8), axes=(1, 0)) - 0.5) ** 2
        ),
        (W, complexes(5, 5)),
    ),
    "waves": (_nufft_like, (X, Z)),
    "evolution": (_evolved, (X[:3], U)),
    "Crank-Nicolson": (_crank_nicolson, (B, U)),
    "an expectation": (lambda xp, psi: xp.real(_inner(xp, psi, xp.matmul(H, psi))), (U,)),
    "angles": (lambda xp, z: xp.sum(_atan2(xp)(xp.imag(z * z), xp.real(z))), (Z,)),
    "holomorphic parts": (lambda xp, z: xp.sum(xp.real(xp.sin(z) * xp.exp(-z / 3) + xp.sqrt(z) * xp.tanh(z))), (Z,)),
    "powers": (lambda xp, x, z: xp.sum(xp.imag(z ** (x / 2) + (1.5 + x**2) ** z / z)), (X, Z)),
    "mixed": (lambda xp, x, z, w: xp.sum(xp.abs(xp.conj(x * z) @ w - 1j * xp.mean(z)) ** 2), (X, Z, W)),
    "moments": (lambda xp, a: xp.sum(xp.var(a, axis=0)) + xp.sum(xp.abs(xp.mean(a, axis=1))), (A,)),
    "an einsum": (lambda xp, a, b, z: xp.sum(xp.real(xp.einsum("ij,jk,i->k", a, b, z)) ** 3) / 100, (A, B, Z)),
    "a determinant": (lambda xp, b: xp.abs(xp.linalg.det(b)) + xp.real(xp.sum(xp.linalg.inv(b))), (B,)),
    "slices and joints": (
        lambda xp, z: xp.sum(xp.abs(_join(xp)([z[::-2], 1j * xp.real(z[1:4]), xp.conj(z[:2])])) ** 3), (Z,),
    ),
}  # fmt: skip


def _inner(xp: Any, x: Any, y: Any) -> Any:
    return tg.vecdot(x, y) if xp is tg else anp.sum(anp.conj(x) * y)


def _atan2(xp: Any) -> Any:
    return tg.atan2 if xp is tg else anp.arctan2


def _join(xp: Any) -> Any:
    return tg.concat if xp is tg else anp.concatenate


@pytest.mark.parametrize("chunks", ["auto", 3])
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_of_autograd(name: str, chunks: Any) -> None:
    f, arrays = LOSSES[name]
    argnums = tuple(range(len(arrays)))
    expected = autograd.value_and_grad(lambda xs: f(anp, *xs))(arrays)
    xs = [tg.asarray(a, chunks=chunks) for a in arrays]
    y, gradients = tg.value_and_grad(lambda *xs: f(tg, *xs), argnums)(*xs)
    found = dask.compute(y, *gradients, scheduler="synchronous")
    assert [g.dtype for g in found[1:]] == [a.dtype for a in arrays]
    for given, wanted in zip(found, (expected[0], *expected[1]), strict=True):
        np.testing.assert_allclose(given, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_both_modes_to_the_second_order(name: str) -> None:
    f, arrays = LOSSES[name]
    with dask.config.set(scheduler="synchronous"):
        tg.check_grads(lambda *xs: f(tg, *xs), [tg.asarray(a) for a in arrays], order=2, tolerance=1e-4)


# -- the convention ----------------------------------------------------------------------------------------------------


def test_the_gradient_of_a_real_function() -> None:
    """dL/da - i dL/db, so that L falls along minus its conjugate; PyTorch calls the conjugate the gradient."""

    def loss(z: tg.Tensor) -> tg.Tensor:
        return tg.sum(tg.real(z) ** 2 + 3 * tg.imag(z))

    np.testing.assert_allclose(value(tg.grad(loss)(Z)), 2 * Z.real - 3j)
    g = value(tg.grad(loss)(Z))
    assert value(loss(tg.asarray(Z - 1e-3 * g.conj()))) < value(loss(tg.asarray(Z)))


def test_holomorphic_functions_have_no_conjugate() -> None:
    out, pullback = tg.vjp(lambda z: tg.exp(z * z), Z)
    slope = 2 * Z * np.exp(Z * Z)
    np.testing.assert_allclose(value(pullback(tg.asarray(U[0] * np.ones(8)))[0]), U[0] * slope)
    np.testing.assert_allclose(value(tg.jvp(lambda z: tg.exp(z * z), (Z,), (Z,))[1]), slope * Z)
    z = tg.asarray(Z)
    np.testing.assert_allclose(value(tg.gradients(tg.exp(z * z), z)), slope)
    assert out.dtype == np.complex128


def test_a_transpose_is_not_conjugated() -> None:
    ct = complexes(8)
    (back,) = tg.vjp(lambda u: tg.asarray(A) @ u, U)[1](ct)
    np.testing.assert_allclose(value(back), A.T @ ct)
    (back,) = tg.vjp(tg.conj, Z)[1](ct)
    np.testing.assert_allclose(value(back), ct.conj())


def test_real_inputs_get_the_real_part() -> None:
    (back,) = tg.vjp(lambda x: x * Z, X)[1](Z.conj())
    assert back.dtype == np.float64
    np.testing.assert_allclose(value(back), np.abs(Z) ** 2)
    out, moved = tg.jvp(lambda x: tg.exp(1j * x), (X,), (X,))
    assert out.dtype == moved.dtype == np.complex128
    np.testing.assert_allclose(value(moved), 1j * X * np.exp(1j * X))


def test_single_precision_stays() -> None:
    z, x = tg.asarray(Z.astype("c8")), tg.asarray(X.astype("f4"))
    y = tg.sum(tg.abs(tg.fft.fft(x * z)) ** 2) + tg.sum(tg.abs(tg.sign(z) + tg.fft.rfft(x, n=15))) + tg.sum(tg.var(z))
    for found in (y, *tg.gradients(y, [x, z]), *tg.gradients(tg.gradients(y, x), [x, z])):
        assert found.dtype == value(found).dtype
        assert found.dtype in ("f4", "c8")


def test_numbers_as_directions() -> None:
    out, moved = tg.jvp(lambda z: z**2, (1 + 2j,), (1j,))
    assert value(moved) == 2j * (1 + 2j)
    assert value(tg.vjp(lambda z: z**2, 1 + 2j)[1](1)[0]) == 2 * (1 + 2j)
    assert out.dtype == np.complex128


def test_backward_fills_complex_leaves() -> None:
    z = tg.tensor(Z, requires_grad=True)
    y = tg.sum(tg.abs(tg.fft.fft(z, norm="ortho")) ** 2)
    y.backward()
    assert z.grad is not None
    np.testing.assert_allclose(value(z.grad), 2 * Z.conj())  # Parseval: y is the energy of z
    w = tg.tensor(Z, requires_grad=True)
    (w * w).backward(tg.asarray(Z))
    assert w.grad is not None
    np.testing.assert_allclose(value(w.grad), 2 * Z * Z)


def test_a_product_of_hessian_and_vector() -> None:
    """L = |z|^2 has dL/da - i dL/db = 2 conj(z)."""
    found = tg.hvp(lambda z: _energy(tg, z), (tg.asarray(Z),), (tg.asarray(A[:, 0]),))
    np.testing.assert_allclose(value(found), 2 * A[:, 0].conj())


def test_jacobians_with_complex_results() -> None:
    found = tg.jacobian(lambda x: tg.fft.fft(x)[:2])(tg.asarray(X))
    np.testing.assert_allclose(value(found), np.fft.fft(np.eye(8))[:2], atol=1e-12)
    hessian = tg.hessian(lambda x: tg.sum(tg.abs(tg.fft.fft(x)) ** 2))(tg.asarray(X))
    np.testing.assert_allclose(value(hessian), 16 * np.eye(8), atol=1e-9)


def test_checkpoints() -> None:
    inner = tg.checkpoint(lambda z, a: tg.sin(tg.exp(a @ z)))

    def loss(z: tg.Tensor, a: tg.Tensor) -> tg.Tensor:
        return _energy(tg, inner(z, a))

    plain = tg.grad(lambda z, a: _energy(tg, tg.sin(tg.exp(a @ z))), (0, 1))(tg.asarray(U), tg.asarray(A))
    kept = tg.grad(loss, (0, 1))(tg.asarray(U), tg.asarray(A))
    for p, k in zip(plain, kept, strict=True):
        np.testing.assert_allclose(value(k), value(p))
    names = [n.op.name for n in tg.expr.topological([k.expr for k in kept])]
    assert "barrier" in names


def test_the_numerical_check_rejects_a_wrong_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """A conjugate where none belongs."""
    row = tg.primitives.TABLE["exp"]
    monkeypatch.setitem(row.__dict__, "vjp", lambda ct, out, x: (ct * tg.conj(out),))
    with pytest.raises(AssertionError, match="reverse mode, order 1"):
        tg.check_grads(lambda z: tg.exp(z), (tg.asarray(Z),), order=1)


# -- transforms and blocks ---------------------------------------------------------------------------------------------


def test_the_rechunk_before_a_transform_is_in_the_graph() -> None:
    x = tg.asarray(A, chunks=(4, 5))
    t = tg.fft.fft(x, axis=0)
    assert t.chunks == ((8,), (3, 2))  # a block stays as large as it was
    assert [i.op.name for i in t.expr.inputs] == ["rechunk"]
    assert tg.fft.fft(x, axis=1).expr.inputs[0].op.name == "constant"
    both = [n.op.name for n in tg.expr.topological([tg.fft.fftn(x).expr])]
    assert both == ["constant", "fft", "rechunk", "fft"]


def test_a_transform_of_one_block_is_one_row() -> None:
    rows = [n.op.name for n in tg.expr.topological([tg.fft.ifftn(tg.asarray(A)).expr])]
    assert rows == ["constant", "fft"]


@pytest.mark.parametrize("name", list(array_api_strict.fft.__all__))
def test_signatures_are_those_of_the_standard(name: str) -> None:
    theirs, ours = (inspect.signature(getattr(xp.fft, name)).parameters for xp in (array_api_strict, tg))
    for parameter in theirs.values():
        mine = ours[parameter.name]
        assert (mine.kind, mine.default) == (parameter.kind, parameter.default)


def test_transforms_on_dasks_threads() -> None:
    x = tg.asarray(W, chunks=(3, 2))
    loss = tg.sum(tg.abs(tg.fft.rfftn(x)) ** 2)
    found = tg.compute(loss, tg.gradients(loss, x))
    half = np.abs(np.fft.rfftn(W)) ** 2
    np.testing.assert_allclose(found[0], half.sum())
    assert found[1].shape == W.shape
