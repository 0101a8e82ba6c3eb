"""A network of two layers that reads handwritten digits, trained by AdamW: `taskgraph run examples/mlp.py 300`."""

import sys
from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits

import taskgraph as tg

BATCH = 359  # a quarter of the images to train on


def digits():
    """Images in [0, 1] and labels, shuffled: four fifths to train on, one fifth held out."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images, labels = data.data[order] / 16.0, data.target[order]
    return images[: 4 * BATCH], labels[: 4 * BATCH], images[4 * BATCH :], labels[4 * BATCH :]


def first_params(sizes=(64, 64, 10)):
    """Weights and biases, one pair a layer."""
    rng = np.random.default_rng(1)
    return [{"w": rng.normal(0, m**-0.5, (m, n)), "b": np.zeros(n)} for m, n in pairwise(sizes)]


def logits(params, x):
    """What the network says of images (n, 64): (n, 10)."""
    *hidden, last = params
    for layer in hidden:
        x = tg.tanh(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def loss_of(params, x, y):
    """The mean loss on a batch."""
    return tg.optim.softmax_cross_entropy(logits(params, x), y)


def train(steps):
    """The loss of every step, and the parameters after the last one."""
    images, labels, *_ = digits()
    parts = zip(np.split(images, 4), np.split(labels, 4), strict=True)
    batches = tg.tree.persist([(tg.asarray(x), tg.asarray(y)) for x, y in parts])
    rate = tg.optim.warmup(10, tg.optim.cosine(0.02, steps))
    optimizer = tg.optim.chain(tg.optim.clip_by_global_norm(1.0), tg.optim.adamw(rate))
    params = tg.tree.map(tg.asarray, first_params())
    state = optimizer.init(params)
    losses = []
    for step in range(steps):
        loss, grads = tg.value_and_grad(loss_of)(params, *batches[step % 4])
        updates, state = optimizer.update(grads, state, params)
        # One submission computes the step; what the next one starts from stays where it was computed.
        params, state, loss = tg.tree.persist((tg.optim.apply_updates(params, updates), state, loss))
        losses.append(float(loss))
    return losses, params


if __name__ == "__main__":
    losses, params = train(int(sys.argv[1]) if len(sys.argv) > 1 else 300)
    *_, images, labels = digits()
    accuracy = (np.argmax(logits(params, images).compute(), axis=1) == labels).mean()
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.4f}, accuracy on {len(labels)} held-out digits: {accuracy:.3f}")
