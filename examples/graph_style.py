"""A function and its gradient in graph style: describe first, then feed values and run."""

import taskgraph as tg

x = tg.placeholder(tg.float32, [2, 2])
y = 3 * x**2 + 2 * x + 3
g = tg.gradients(y, x)

with tg.Session() as sess:
    grad = sess.run(g, feed_dict={x: [[1.0, 2.0], [3.0, 4.0]]})
    print(grad)
