"""Elementwise operations: the array API's, one row each.

Design note. An elementwise operation has a diagonal Jacobian, so its vjp and its jvp are the same multiplication by the
partial derivative; a row therefore gives the partial derivative with respect to every input and both rules follow from
it (`1` marks an input that passes its cotangent through). For complex numbers it is the g of dy = g dx, or of
dy = Re(g dx) where the result is real; what is neither has rules of its own. Types are NumPy's own decision: the ufunc
of the same name resolves them, inputs of another type get an explicit `astype`, so that a kernel always sees equal
types (which strict namespaces demand) and the cast has a gradient of its own.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from taskgraph.chunks import broadcast, unify
from taskgraph.expr import Chunks, DType, Expr, Shape, describe
from taskgraph.operators import PYTHON_SCALARS
from taskgraph.ops.arguments import array, numeric
from taskgraph.primitives import Primitive, no_gradient, primitive
from taskgraph.tensor import Tensor, apply

Partial = Callable[..., Any] | int | None


# -- rules -----------------------------------------------------------------------------------------------------------


def _vjp_of(partials: Sequence[Partial]) -> Callable[..., Any]:
    def vjp(ct: Tensor, out: Tensor, *xs: Tensor) -> tuple[Tensor | None, ...]:
        return tuple(_scale(ct, p, out, xs) for p in partials)

    return vjp


def _jvp_of(partials: Sequence[Partial]) -> Callable[..., Any]:
    def jvp(tangents: Sequence[Tensor | None], out: Tensor, *xs: Tensor) -> Tensor | None:
        terms = [_scale(t, p, out, xs) for t, p in zip(tangents, partials, strict=True) if t is not None]
        return functools.reduce(add, [t for t in terms if t is not None]) if terms else None

    return jvp


def _scale(t: Tensor, partial: Partial, out: Tensor, xs: Sequence[Tensor]) -> Tensor | None:
    if partial is None:
        return None
    if partial == 1:
        return t
    if partial == -1:
        return negative(t)
    assert callable(partial)
    return t * partial(out, *xs)


# -- shape and type rules --------------------------------------------------------------------------------------------


def _infer(name: str, result: Callable[..., DType]) -> Callable[..., tuple[Shape, DType, Chunks]]:
    def infer(*inputs: Expr) -> tuple[Shape, DType, Chunks]:
        try:
            shape = broadcast([i.shape for i in inputs])
        except ValueError:
            operands = ", ".join(describe(i) for i in inputs)
            raise ValueError(f"{name}: shapes do not broadcast: {operands}") from None
        return shape, result(*[i.dtype for i in inputs]), unify(shape, [(i.shape, i.chunks) for i in inputs])

    return infer


@functools.lru_cache(maxsize=4096)
def _resolve(name: str, ufunc: np.ufunc, types: tuple[Any, ...]) -> tuple[DType, ...]:
    """Types of the inputs' casts and of the result; Python's number types stand for themselves and are weak."""
    try:
        return ufunc.resolve_dtypes((*types, None))
    except TypeError:
        names = ", ".join(t.__name__ if isinstance(t, type) else str(t) for t in types)
        raise TypeError(f"{name}: not defined for {names}") from None


def _weak(kind: type) -> Any:
    """What stands for a Python number when NumPy resolves types; its bool is as strong as an array's."""
    return np.dtype(bool) if kind is bool else kind


def _public(row: Primitive, ufunc: np.ufunc, nin: int, cast_to: Any, doc: str) -> Callable[..., Tensor]:
    def call(*args: Any) -> Tensor:
        if len(args) != nin:
            raise TypeError(f"{row.name}: takes {nin} array(s), got {len(args)}")
        args = tuple([_operand(row.name, a) for a in args])
        if not any(isinstance(a, Tensor) for a in args):
            args = (array(row.name, args[0]), *args[1:])
        types = tuple([a.dtype if isinstance(a, Tensor) else _weak(type(a)) for a in args])
        wanted = (np.dtype(cast_to),) * nin if cast_to else _resolve(row.name, ufunc, types)
        try:
            operands = [cast(a, t) for a, t in zip(args, wanted, strict=False)]
        except OverflowError:
            if ufunc not in _COMPARISONS:
                raise
            return _beyond(ufunc, args)
        return apply(row, *operands)

    names = ("x1", "x2") if nin == 2 else ("x",)
    parameters = [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names]
    call.__name__ = call.__qualname__ = row.name
    call.__signature__ = inspect.Signature(parameters, return_annotation=Tensor)  # type: ignore[attr-defined]
    call.__doc__ = (
        f"{doc}\n\n{row.name}({', '.join(names)}): shapes broadcast; types and values as `numpy.{ufunc.__name__}`."
    )
    return call


def _operand(name: str, a: Any) -> Any:
    """A tensor, or the Python number that the operand is: its type is weak."""
    return a if type(a) in PYTHON_SCALARS else array(name, a)


_COMPARISONS = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)


def _beyond(comparison: np.ufunc, args: Sequence[Any]) -> Tensor:
    """A comparison with a Python integer beyond the tensor's type: every element has the answer that 0 has."""
    from taskgraph.ops.create import filled

    (t,) = [a for a in args if isinstance(a, Tensor)]
    answer = comparison(*[np.array(0 if a is t else a, dtype=object) for a in args])
    return filled(t, bool(answer), np.dtype(bool))


def cast(x: Any, dtype: DType) -> Tensor:
    """`x` (a tensor or a Python number) as a tensor of that type; no expression where it is one already."""
    if not isinstance(x, Tensor):
        from taskgraph.ops.create import scalar

        return scalar(x, dtype)
    if x.dtype == dtype:
        return x
    if x.dtype.kind == "c" and dtype.kind == "b":
        return not_equal(x, 0)
    return apply(ASTYPE, x, dtype=np.dtype(dtype))


def fitted(t: Tensor, dtype: DType) -> Tensor:
    """A cotangent or tangent for a value of that type: a real one has the real part of what a rule gave."""
    if (t.dtype.kind == "c") == (dtype.kind == "c"):
        return t
    return real(t) if t.dtype.kind == "c" else cast(t, dtype)


def conjugate(x: Tensor) -> Tensor:
    """The complex conjugate; no expression where the numbers are real."""
    return conj(x) if x.dtype.kind == "c" else x


def elementwise(
    name: str,
    doc: str,
    *partials: Partial,
    ufunc: np.ufunc | None = None,
    flops: int = 1,
    cast_to: Any = None,
    vjp: Callable[..., Any] | None = None,
    jvp: Callable[..., Any] | None = None,
) -> Callable[..., Tensor]:
    """Enter a row and give its public function.

    partials: the partial derivative with respect to each input, as `f(out, *inputs)`; none at all where the function is
    constant almost everywhere (its gradient is then an explicit zero). vjp, jvp: in their place, where the derivative
    is no multiplication. flops: per element.
    """
    f = ufunc or getattr(np, name)
    nin, differentiable = f.nin, bool(partials)
    row = primitive(
        name,
        kind="elementwise",
        infer=_infer(name, lambda *types: _resolve(name, f, types)[-1]),
        lower=lambda xp, *blocks: getattr(xp, name)(*blocks),
        vjp=vjp or (_vjp_of(partials) if differentiable else no_gradient),
        jvp=jvp or (_jvp_of(partials) if differentiable else no_gradient),
        flops=lambda node: flops * node.size,
    )
    return _public(row, f, nin, cast_to, doc)


# -- the rows --------------------------------------------------------------------------------------------------------

_LN2, _LN10 = math.log(2.0), math.log(10.0)


def _ties(out: Tensor, mine: Tensor, other: Tensor) -> Tensor:
    """Share of an input in a maximum or minimum: all where it is taken, half where both are equal."""
    return cast(equal(mine, out), out.dtype) / (1 + cast(equal(mine, other), out.dtype))


def _pow_base(out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    # x**(y-1) is infinite at x = y = 0, where the derivative is 0
    return y * pow(x, where(equal(y, 0), 1, y - 1))


def _pow_exponent(out: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return out * log(where(equal(x, 0), 1, x))  # 0**y has derivative 0 in y > 0, and log(0) is not finite


def _across(direction: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """What of t / |x| is at right angles to a direction; 0 where x is, as its direction is."""
    size = abs(x)
    return 1j * (imag(direction * t) / where(equal(size, 0), 1, size))


def _sign_vjp(ct: Tensor, out: Tensor, x: Tensor) -> tuple[Tensor | None]:
    return (conj(out) * _across(out, x, ct) if x.dtype.kind == "c" else None,)


def _sign_jvp(ts: Sequence[Tensor], out: Tensor, x: Tensor) -> Tensor | None:
    return out * _across(conj(out), x, ts[0]) if x.dtype.kind == "c" else None


def _abs_partial(out: Tensor, x: Tensor) -> Tensor:
    """The sign, conjugate; of complex numbers without a division by 0 where x is, and 0 there."""
    return conj(x) / where(equal(out, 0), 1, out) if x.dtype.kind == "c" else sign(x)


abs = elementwise("abs", "Absolute value.", _abs_partial, ufunc=np.absolute)
acos = elementwise("acos", "Inverse cosine.", lambda out, x: -1 / sqrt(1 - x * x), ufunc=np.arccos, flops=10)
acosh = elementwise(
    # not 1 / sqrt(x * x - 1), which has the other sign in the left half of the complex plane
    "acosh",
    "Inverse hyperbolic cosine.",
    lambda out, x: 1 / (sqrt(x - 1) * sqrt(x + 1)),
    ufunc=np.arccosh,
    flops=10,
)
add = elementwise("add", "Sum of two arrays.", 1, 1)
asin = elementwise("asin", "Inverse sine.", lambda out, x: 1 / sqrt(1 - x * x), ufunc=np.arcsin, flops=10)
asinh = elementwise("asinh", "Inverse hyperbolic sine.", lambda out, x: 1 / sqrt(x * x + 1), ufunc=np.arcsinh, flops=10)
atan = elementwise("atan", "Inverse tangent.", lambda out, x: 1 / (1 + x * x), ufunc=np.arctan, flops=10)
atan2 = elementwise("atan2", "Angle of the point (x2, x1).",
                    lambda out, y, x: x / (x * x + y * y), lambda out, y, x: -y / (x * x + y * y),
                    ufunc=np.arctan2, flops=15)  # fmt: skip
atanh = elementwise("atanh", "Inverse hyperbolic tangent.", lambda out, x: 1 / (1 - x * x), ufunc=np.arctanh, flops=10)
bitwise_and = elementwise("bitwise_and", "Bits set in both.", ufunc=np.bitwise_and)
bitwise_or = elementwise("bitwise_or", "Bits set in either.", ufunc=np.bitwise_or)
bitwise_xor = elementwise("bitwise_xor", "Bits set in one of the two.", ufunc=np.bitwise_xor)
bitwise_invert = elementwise("bitwise_invert", "Bits not set.", ufunc=np.invert)
bitwise_left_shift = elementwise("bitwise_left_shift", "Bits shifted left.", ufunc=np.left_shift)
bitwise_right_shift = elementwise("bitwise_right_shift", "Bits shifted right.", ufunc=np.right_shift)
ceil = elementwise("ceil", "Smallest integer that is not less.")
conj = elementwise("conj", "Complex conjugate.",
                   vjp=lambda ct, out, x: (conjugate(ct),), jvp=lambda ts, out, x: conjugate(ts[0]))  # fmt: skip
copysign = elementwise("copysign", "x1 with the sign of x2.",
                       lambda out, x, y: where(equal(signbit(x), signbit(y)), 1, -1) * cast(not_equal(x, 0), out.dtype),
                       None)  # fmt: skip
cos = elementwise("cos", "Cosine.", lambda out, x: -sin(x), flops=10)
cosh = elementwise("cosh", "Hyperbolic cosine.", lambda out, x: sinh(x), flops=10)
divide = elementwise("divide", "Quotient of two arrays.", lambda out, x, y: 1 / y, lambda out, x, y: -out / y)
equal = elementwise("equal", "Whether elements are equal.")
exp = elementwise("exp", "Exponential.", lambda out, x: out, flops=10)
expm1 = elementwise("expm1", "exp(x) - 1, exact near 0.", lambda out, x: out + 1, flops=10)
floor = elementwise("floor", "Largest integer that is not greater.")
floor_divide = elementwise("floor_divide", "Quotient rounded down.")
greater = elementwise("greater", "Whether x1 > x2.")
greater_equal = elementwise("greater_equal", "Whether x1 >= x2.")
hypot = elementwise("hypot", "sqrt(x1**2 + x2**2) without overflow.",
                    lambda out, x, y: x / out, lambda out, x, y: y / out, flops=5)  # fmt: skip
isfinite = elementwise("isfinite", "Whether elements are finite.")
isinf = elementwise("isinf", "Whether elements are infinite.")
isnan = elementwise("isnan", "Whether elements are not numbers.")
less = elementwise("less", "Whether x1 < x2.")
less_equal = elementwise("less_equal", "Whether x1 <= x2.")
log = elementwise("log", "Natural logarithm.", lambda out, x: 1 / x, flops=10)
log1p = elementwise("log1p", "log(1 + x), exact near 0.", lambda out, x: 1 / (1 + x), flops=10)
log2 = elementwise("log2", "Logarithm to base 2.", lambda out, x: 1 / (x * _LN2), flops=10)
log10 = elementwise("log10", "Logarithm to base 10.", lambda out, x: 1 / (x * _LN10), flops=10)
logaddexp = elementwise("logaddexp", "log(exp(x1) + exp(x2)) without overflow.",
                        lambda out, x, y: exp(x - out), lambda out, x, y: exp(y - out), flops=20)  # fmt: skip
logical_and = elementwise("logical_and", "Whether both are true.", cast_to=bool)
logical_or = elementwise("logical_or", "Whether either is true.", cast_to=bool)
logical_xor = elementwise("logical_xor", "Whether one of the two is true.", cast_to=bool)
logical_not = elementwise("logical_not", "Whether elements are false.", cast_to=bool)
maximum = elementwise("maximum", "The greater of the two; at ties each input gets half of the gradient.",
                      lambda out, x, y: _ties(out, x, y), lambda out, x, y: _ties(out, y, x))  # fmt: skip
minimum = elementwise("minimum", "The lesser of the two; at ties each input gets half of the gradient.",
                      lambda out, x, y: _ties(out, x, y), lambda out, x, y: _ties(out, y, x))  # fmt: skip
multiply = elementwise("multiply", "Product of elements.", lambda out, x, y: y, lambda out, x, y: x)
negative = elementwise("negative", "Elements with their sign changed.", -1)
nextafter = elementwise("nextafter", "Next representable number towards x2.")
not_equal = elementwise("not_equal", "Whether elements differ.")
positive = elementwise("positive", "The elements themselves.", 1)
_pow = elementwise("pow", "x1 raised to x2.", _pow_base, _pow_exponent, ufunc=np.power, flops=20)
reciprocal = elementwise("reciprocal", "1 / x.", lambda out, x: -out * out)
remainder = elementwise("remainder", "Remainder of the division rounded down, with the sign of x2.",
                        1, lambda out, x, y: -floor_divide(x, y))  # fmt: skip
sign = elementwise("sign", "-1, 0 or 1 by the sign, of complex numbers x / |x|; the derivative is zero but of these.",
                   vjp=_sign_vjp, jvp=_sign_jvp)  # fmt: skip
signbit = elementwise("signbit", "Whether the sign is set.")
sin = elementwise("sin", "Sine.", lambda out, x: cos(x), flops=10)
sinh = elementwise("sinh", "Hyperbolic sine.", lambda out, x: cosh(x), flops=10)
square = elementwise("square", "x * x.", lambda out, x: 2 * x)
sqrt = elementwise("sqrt", "Square root.", lambda out, x: 0.5 / out, flops=5)
subtract = elementwise("subtract", "Difference of two arrays.", 1, -1)
tan = elementwise("tan", "Tangent.", lambda out, x: 1 + out * out, flops=10)
tanh = elementwise("tanh", "Hyperbolic tangent.", lambda out, x: 1 - out * out, flops=10)
trunc = elementwise("trunc", "Rounded towards zero.")
rint = elementwise("round", "Rounded to the nearest integer, halves to even.", ufunc=np.rint)


def pow(x1: Any, x2: Any, /) -> Tensor:
    """x1 raised to x2.

    pow(x1, x2): shapes broadcast; types and values as `numpy.power`. The numbers 2 and 0.5 become a square and a square
    root, as in NumPy's own `**`, where the type of the result allows it.
    """
    if type(x2) in (int, float) and isinstance(x1, Tensor) and np.issubdtype(x1.dtype, np.inexact):
        if x2 == 2:
            return square(x1)
        if x2 == 0.5:
            return sqrt(x1)
        if x2 == 1:
            return x1
    return _pow(x1, x2)


def round(x: Any, /) -> Tensor:
    """Elements rounded to the nearest integer, halves to even; integers are left as they are."""
    x = array("round", x)
    return x if x.dtype.kind in "iu" else rint(x)


# -- rows whose types are not a ufunc's ------------------------------------------------------------------------------


def _infer_astype(x: Expr, dtype: DType) -> tuple[Shape, DType, Chunks]:
    if x.dtype.kind == "c" and dtype.kind != "c":
        raise TypeError(f"astype: a complex array has no values of {dtype}; take real(x) or imag(x)")
    return x.shape, dtype, x.chunks


def _cast_rule(t: Tensor, to: DType) -> Tensor | None:
    return cast(fitted(t, to), to) if np.issubdtype(to, np.inexact) and np.issubdtype(t.dtype, np.inexact) else None


ASTYPE = primitive(
    "astype",
    kind="elementwise",
    infer=_infer_astype,
    lower=lambda xp, x, dtype: xp.astype(x, getattr(xp, dtype.name, dtype)),
    vjp=lambda ct, out, x, dtype: (_cast_rule(ct, x.dtype),),
    jvp=lambda ts, out, x, dtype: _cast_rule(ts[0], out.dtype),
)


def astype(x: Tensor, dtype: Any, /, *, copy: bool = True) -> Tensor:
    """`x` with its elements cast to `dtype`, as `numpy.astype`; integers and booleans stop gradients.

    Raises TypeError for a dtype that is not numeric, or a complex array cast to a real one. `copy` is accepted for the
    array API's sake: tensors are immutable.
    """
    return cast(array("astype", x), numeric(dtype, "astype"))


def _component(name: str, doc: str, partial: Partial) -> Callable[[Any], Tensor]:
    row = primitive(
        name,
        kind="elementwise",
        infer=_infer(name, _real_type),
        lower=lambda xp, x: getattr(xp, name)(x),
        vjp=_vjp_of([partial]),
        jvp=_jvp_of([partial]),
    )

    def call(x: Any, /) -> Tensor:
        from taskgraph.ops.create import filled

        x = array(name, x)
        if x.dtype.kind == "c":
            return apply(row, x)
        return x if name == "real" else filled(x, 0)

    call.__name__ = call.__qualname__ = name
    call.__doc__ = doc
    return call


def _real_type(dtype: DType) -> DType:
    return np.empty(0, dtype).real.dtype


real = _component("real", "Real part of the elements.", 1)
imag = _component("imag", "Imaginary part of the elements.", lambda out, x: -1j)


def _choice(t: Tensor | None, condition: Tensor, first: bool) -> Tensor | None:
    if t is None:
        return None
    return where(condition, t, 0) if first else where(condition, 0, t)


def _where_jvp(ts: Sequence[Tensor | None], out: Tensor, condition: Tensor, x: Tensor, y: Tensor) -> Tensor | None:
    parts = [p for p in (_choice(ts[1], condition, True), _choice(ts[2], condition, False)) if p is not None]
    return functools.reduce(add, parts) if parts else None


WHERE = primitive(
    "where",
    kind="elementwise",
    infer=_infer("where", lambda condition, x, y: x),
    lower=lambda xp, condition, x, y: xp.where(condition, x, y),
    vjp=lambda ct, out, condition, x, y: (None, _choice(ct, condition, True), _choice(ct, condition, False)),
    jvp=_where_jvp,
)


def where(condition: Any, x1: Any, x2: Any, /) -> Tensor:
    """Elements of `x1` where `condition` is true, of `x2` elsewhere; the three broadcast.

    The gradient of the branch that is not taken is zero, but in reverse mode an infinite derivative there makes NaN
    through `0 * inf`: guard the argument of the unsafe function, too (`where(x > 0, log(where(x > 0, x, 1)), 0)`).
    """
    pick = cast(array("where", condition), np.dtype(bool))
    return apply(WHERE, pick, *_alike("where", x1, x2))


def _alike(name: str, *xs: Any) -> list[Tensor]:
    """The operands, all cast to the type to which they promote together."""
    operands = [_operand(name, x) for x in xs]
    dtype = np.result_type(*[a.dtype if isinstance(a, Tensor) else a for a in operands])
    return [cast(a, dtype) for a in operands]


def clip(x: Any, /, min: Any = None, max: Any = None) -> Tensor:
    """Elements below `min` raised to it, elements above `max` lowered to it; the bounds broadcast with `x`."""
    x, *bounds = _alike("clip", x, *[b for b in (min, max) if b is not None])
    low = x if min is None else maximum(x, bounds[0])
    return low if max is None else minimum(low, bounds[-1])


__all__ = [
    "abs", "acos", "acosh", "add", "asin", "asinh", "astype", "atan", "atan2", "atanh", "bitwise_and",
    "bitwise_invert", "bitwise_left_shift", "bitwise_or", "bitwise_right_shift", "bitwise_xor", "ceil", "clip",
    "conj", "copysign", "cos", "cosh", "divide", "equal", "exp", "expm1", "floor", "floor_divide", "greater",
    "greater_equal", "hypot", "imag", "isfinite", "isinf", "isnan", "less", "less_equal", "log", "log1p", "log2",
    "log10", "logaddexp", "logical_and", "logical_not", "logical_or", "logical_xor", "maximum", "minimum", "multiply",
    "negative", "nextafter", "not_equal", "positive", "pow", "real", "reciprocal", "remainder", "round", "sign",
    "signbit", "sin", "sinh", "sqrt", "square", "subtract", "tan", "tanh", "trunc", "where",
]  # fmt: skip
