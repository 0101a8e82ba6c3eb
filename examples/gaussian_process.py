"""A Gaussian process on the diabetes data: its hyperparameters by gradients of the log marginal likelihood."""

import numpy as np
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

import taskgraph as tg

data = load_diabetes()
features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
targets = (data.target - data.target.mean()) / data.target.std()
n = len(targets)

# The data go to the workers once, in blocks of rows, and stay there.
x, y = tg.persist(tg.asarray(features, chunks=(150, -1)), tg.asarray(targets, chunks=150))
squares = tg.sum(x**2, axis=1)
distances = squares[:, None] + squares[None, :] - 2 * x @ x.T


def loss(params):
    """Minus the log marginal likelihood, over n (Rasmussen & Williams, 2006, algorithm 2.1); params are logarithms."""
    kernel = tg.exp(params["scale"]) * tg.exp(-0.5 * distances * tg.exp(-2 * params["length"]))
    factor = tg.linalg.cholesky(kernel + tg.exp(params["noise"]) * tg.eye(n))
    white = tg.linalg.solve(factor, y)
    return (0.5 * tg.sum(white**2) + tg.sum(tg.log(tg.linalg.diagonal(factor)))) / n + 0.5 * np.log(2 * np.pi)


start = {"scale": tg.zeros(()), "length": tg.ones(()), "noise": tg.zeros(())}
found = tg.optim.minimize_scipy(loss, start, options={"ftol": 1e-12, "gtol": 1e-7})
scale, length, noise = (float(found.x[name]) for name in ("scale", "length", "noise"))

kernel = ConstantKernel(1.0) * RBF(np.e) + WhiteKernel(1.0)
reference = GaussianProcessRegressor(kernel, alpha=0.0).fit(features, targets)
likelihood = -n * found.fun
same_point = reference.log_marginal_likelihood([scale, length, noise])
print(f"scale {np.exp(scale):.3f}, length {np.exp(length):.3f}, noise {np.exp(noise):.3f}: {found.nfev} evaluations")
print(f"log marginal likelihood {likelihood:.6f}, scikit-learn's there differs by {abs(likelihood - same_point):.1e}")
print(f"greatest that scikit-learn finds: {reference.log_marginal_likelihood_value_:.6f}")
