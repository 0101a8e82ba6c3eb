"""NumPy-like expressions that become Dask task graphs."""

__version__ = "0.1.0"
