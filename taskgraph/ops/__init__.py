"""The rows of the primitive table, and the public functions that use them."""

from taskgraph.ops import decomposition, fourier, norms, solving  # noqa: F401  (their functions: `tg.linalg`, `tg.fft`)
from taskgraph.ops.create import *  # noqa: F403
from taskgraph.ops.cumulative import *  # noqa: F403
from taskgraph.ops.dtypes import *  # noqa: F403
from taskgraph.ops.elementwise import *  # noqa: F403
from taskgraph.ops.files import *  # noqa: F403
from taskgraph.ops.gather import *  # noqa: F403
from taskgraph.ops.indexing import *  # noqa: F403
from taskgraph.ops.padding import *  # noqa: F403
from taskgraph.ops.product import *  # noqa: F403
from taskgraph.ops.reduce import *  # noqa: F403
from taskgraph.ops.shape import *  # noqa: F403
from taskgraph.ops.sorting import *  # noqa: F403
