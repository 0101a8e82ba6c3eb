"""Linear algebra, `tg.linalg`: the array API standard's extension of that name (2024.12), as far as it goes.

Its `svd` gives as many vectors as there are singular values; `cross`, `matrix_power`, `matrix_rank` and `pinv` are left
out. Integers become float64, half precision is refused, and so are complex numbers but by `solve`, `inv`, `det`,
`vector_norm`, `trace`, `diagonal` and the products; leading axes are batches.
"""

from taskgraph.ops.decomposition import eigh, eigvalsh, qr, svd, svdvals
from taskgraph.ops.matrices import diagonal, trace
from taskgraph.ops.norms import matrix_norm, vector_norm
from taskgraph.ops.product import matmul, outer, tensordot, vecdot
from taskgraph.ops.shape import matrix_transpose
from taskgraph.ops.solving import cholesky, det, inv, slogdet, solve

__all__ = [
    "cholesky", "det", "diagonal", "eigh", "eigvalsh", "inv", "matmul", "matrix_norm", "matrix_transpose", "outer",
    "qr", "slogdet", "solve", "svd", "svdvals", "tensordot", "trace", "vecdot", "vector_norm",
]  # fmt: skip
