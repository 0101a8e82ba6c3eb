"""A function and its gradient in define-by-run style, beside the derivative by hand."""

import taskgraph as tg

x = tg.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
y = 3 * x**2 + 2 * x + 3
y.backward(tg.ones((2, 2)))

# Print auto-gradients
print(x.grad.compute())

# Print manual derivatives
manual_grad = (6 * x + 2) * tg.ones((2, 2))
print(manual_grad.compute())
