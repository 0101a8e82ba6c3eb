"""Logistic regression on the breast cancer data: SciPy's L-BFGS with our gradients, beside scikit-learn's solution."""

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression

import taskgraph as tg

data = load_breast_cancer()
features = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
n, width = features.shape
C = 1.0  # strength of the data against the penalty, as scikit-learn defines it

# The data go to the workers once, in blocks of rows, and stay there.
x, y = tg.persist(tg.asarray(features, chunks=(150, width)), tg.asarray(data.target, chunks=150))


def loss(params):
    """The mean loss and the penalty on the weights: scikit-learn's objective over C * n."""
    return tg.optim.logistic(x @ params["w"] + params["b"], y) + tg.sum(params["w"] ** 2) / (2 * C * n)


start = {"w": tg.zeros(width), "b": tg.zeros(())}
found = tg.optim.minimize_scipy(loss, start, options={"ftol": 1e-14, "gtol": 1e-8, "maxiter": 1000})
weights, bias = found.x["w"].compute(), float(found.x["b"])

reference = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-10).fit(features, data.target)
difference = max(np.abs(weights - reference.coef_[0]).max(), abs(bias - reference.intercept_[0]))
accuracy = ((features @ weights + bias > 0) == data.target).mean()
print(f"loss {found.fun:.6f} after {found.nfev} evaluations, accuracy {accuracy:.3f}")
print(f"greatest difference of a weight from scikit-learn's: {difference:.1e}")
