"""The same product twice in one graph, each pinned to a device.

taskgraph run --emulated-gpus 1 examples/product_graph_style.py 3000
"""

import sys
import time

import taskgraph as tg

n = int(sys.argv[1]) if len(sys.argv) > 1 else 30000
with tg.device("/cpu:0"):
    c = tg.sum(tg.matmul(tg.randn(n, n), tg.randn(n, n)))
with tg.device("/device:GPU:0"):
    z = tg.sum(tg.matmul(tg.randn(n, n), tg.randn(n, n)))

with tg.Session() as sess:
    for device, fetch in (("CPU", c), ("GPU", z)):
        start = time.time()
        sess.run(fetch)
        print(f"Time Elapsed using {device}:", time.time() - start, "seconds")
