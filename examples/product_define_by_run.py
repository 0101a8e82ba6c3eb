"""The same product on CPU workers and on a GPU: only where the operands are makes the difference.

taskgraph run --emulated-gpus 1 examples/product_define_by_run.py 3000
"""

import sys
import time

import taskgraph as tg

n = int(sys.argv[1]) if len(sys.argv) > 1 else 30000
a, b = tg.randn(n, n).cpu(), tg.randn(n, n).cpu()
x, y = tg.randn(n, n).cuda(), tg.randn(n, n).cuda()

start = time.time()
c = tg.mm(a, b).sum().compute()
print("Time Elapsed using CPUs:", time.time() - start, "seconds")

start = time.time()
z = tg.mm(x, y).sum().compute()
print("Time Elapsed using GPUs:", time.time() - start, "seconds")
