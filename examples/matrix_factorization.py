"""1,797 images of digits as a product of two thin matrices, by gradient descent, beside the best there is.

taskgraph run examples/matrix_factorization.py 300
"""

import sys

import numpy as np
from sklearn.datasets import load_digits

import taskgraph as tg

RANK = 8
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 300

images = load_digits().data / 16.0
m, n = images.shape
x = tg.asarray(images, chunks=(450, n)).persist()
rng = tg.random.default_rng(0)
params = {"u": 0.1 * rng.normal(size=(m, RANK), chunks=(450, RANK)), "v": 0.1 * rng.normal(size=(RANK, n))}

optimizer = tg.optim.adam(tg.optim.cosine(0.1, steps))
state = optimizer.init(params)
for step in range(steps):
    loss = tg.sum((x - params["u"] @ params["v"]) ** 2)
    grads = dict(zip(params, tg.gradients(loss, list(params.values())), strict=True))
    updates, state = optimizer.update(grads, state, params)
    params, state, loss = tg.tree.persist((tg.optim.apply_updates(params, updates), state, loss))
    if step % 100 == 0:
        print(f"step {step}: squared error {float(loss):.1f}")

# No product of that rank is nearer than the truncated singular value decomposition (Eckart & Young, 1936).
best = (np.linalg.svd(images, compute_uv=False)[RANK:] ** 2).sum()
error = float(tg.sum((x - params["u"] @ params["v"]) ** 2))
print(f"squared error {error:.3f}, the truncated SVD's {best:.3f}, ratio {error / best:.5f}")
