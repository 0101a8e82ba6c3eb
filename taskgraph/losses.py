"""Losses: the mean over all examples, as a tensor of one element, safe for logits of any size.

Design note. Safe means: no overflow for any finite logits, and no cancellation where the loss is small. So what a
softmax is computed from is the distance to the greatest logit, and a logistic loss is written in exp(-|x|), which is at
most 1. The gradients follow from the rules of the operations; in both cases they are the probability less the label.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from taskgraph.expr import describe
from taskgraph.ops.create import arange, stop_gradient
from taskgraph.ops.elementwise import abs, cast, equal, exp, isfinite, log, log1p, maximum, square, where
from taskgraph.ops.reduce import max, mean, sum
from taskgraph.ops.shape import expand_dims
from taskgraph.tensor import Tensor, as_tensor


def softmax_cross_entropy(logits: Any, labels: Any, *, axis: int = -1) -> Tensor:
    """Mean of -sum(labels * log(softmax(logits))) over the examples; the classes lie along `axis`.

    logits: real, any shape with an axis of classes. labels: probabilities in the shape of the logits, or integers (the
    number of the class) in that shape without `axis`; an integer that is no class counts as an example of loss 0.
    A logit of -inf is a class of probability 0 and is ignored where its label is 0.

    Raises TypeError for logits that are not real floating point numbers, ValueError for labels of another shape.

    >>> import taskgraph as tg
    >>> softmax_cross_entropy(tg.asarray([[1e4, 0.0], [0.0, 0.0]]), tg.asarray([0, 1])).compute()
    np.float64(0.34657359027997264)
    """
    logits, labels = _floating("softmax_cross_entropy", logits), as_tensor(labels)
    if not -logits.ndim <= axis < logits.ndim:
        raise ValueError(f"softmax_cross_entropy: axis {axis} is out of bounds for logits of shape {logits.shape}")
    axis %= logits.ndim
    labels = _one_hot(labels, logits, axis) if labels.dtype.kind in "iu" else cast(labels, logits.dtype)
    if labels.shape != logits.shape:
        raise ValueError(
            f"softmax_cross_entropy: logits are {logits.shape}, so labels are probabilities of that shape or integers "
            f"of shape {logits.shape[:axis] + logits.shape[axis + 1 :]}; these are {labels.shape} {labels.dtype}"
        )
    top = stop_gradient(max(logits, axis=axis, keepdims=True))
    below = logits - where(isfinite(top), top, 0)
    log_p = below - log(sum(exp(below), axis=axis, keepdims=True))
    return -mean(sum(labels * where(equal(labels, 0), 0, log_p), axis=axis))


def _one_hot(labels: Tensor, logits: Tensor, axis: int) -> Tensor:
    if labels.shape != logits.shape[:axis] + logits.shape[axis + 1 :]:
        return labels
    shape = [1] * logits.ndim
    shape[axis] = logits.shape[axis]
    classes = arange(shape[axis], dtype=labels.dtype, chunks=(logits.chunks[axis],)).reshape(tuple(shape))
    return cast(equal(expand_dims(labels, axis=axis), classes), logits.dtype)


def mse(predictions: Any, targets: Any) -> Tensor:
    """Mean of (predictions - targets)**2 over all elements.

    Raises TypeError for predictions that are not real floating point numbers, ValueError where the shapes differ: a
    column against a row would otherwise broadcast to a matrix of differences.

    >>> import taskgraph as tg
    >>> mse(tg.asarray([1.0, 3.0]), tg.asarray([1, 1])).compute()
    np.float64(2.0)
    """
    predictions = _floating("mse", predictions)
    return mean(square(predictions - _like("mse", predictions, targets)))


def logistic(logits: Any, labels: Any) -> Tensor:
    """Mean of -log of the probability, 1 / (1 + exp(-logits)), of labels in [0, 1] over all elements.

    logits: real and finite; labels: of the same shape, 0 or 1 (of any type) or a probability between.

    Raises TypeError for logits that are not real floating point numbers, ValueError where the shapes differ.

    >>> import taskgraph as tg
    >>> f"{float(logistic(tg.asarray([1e4, -40.0]), tg.asarray([1, 0]))):.3e}"
    '2.124e-18'
    """
    x = _floating("logistic", logits)
    y = _like("logistic", x, labels)
    return mean(maximum(x, 0) - x * y + log1p(exp(-abs(x))))


def _floating(name: str, x: Any) -> Tensor:
    x = as_tensor(x)
    if not np.issubdtype(x.dtype, np.floating):
        raise TypeError(f"{name}: needs real floating point values, {describe(x.expr)}")
    return x


def _like(name: str, x: Tensor, targets: Any) -> Tensor:
    y = as_tensor(targets)
    if y.shape != x.shape:
        raise ValueError(f"{name}: the shapes must be equal: {describe(x.expr)}, {describe(y.expr)}")
    return cast(y, x.dtype)
