"""What runs on a worker: its device's array namespace, kernels, device tiles and the worker's profile."""
