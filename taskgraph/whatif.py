"""What if: a product written as text, on a machine that need not exist; behind `taskgraph plan`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dask.utils import parse_bytes

from taskgraph.execute import machine_of, simulate
from taskgraph.machine import LINK_BYTES_PER_S, TASK_SECONDS, Device, Machine
from taskgraph.prediction import Prediction
from taskgraph.session import placeholder
from taskgraph.tensor import Tensor
from taskgraph.timeline import to_html

#: What a device that is made up has where nothing is said (chosen: a core with AVX2 and its share of a server's memory,
#: a GPU of some years ago).
CPU_GFLOPS, GPU_GFLOPS = 50.0, 10000.0
CPU_MEMORY, GPU_MEMORY = "16 GiB", "16 GiB"

# -- products as text --------------------------------------------------------------------------------------------------

_TOKEN = re.compile(r"\s*(?:(?P<shape>\d+(?:x\d+)*)|(?P<sign>\.T|[@+()]))")


class _Token(NamedTuple):
    text: str
    at: int
    is_shape: bool


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while text[at:].strip():
        found = _TOKEN.match(text, at)
        if found is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise _wrong(f"no size, '@', '+', '.T' or parenthesis: {text[at]!r}", text, at)
        name = "shape" if found["shape"] else "sign"
        yield _Token(found[name], found.start(name), name == "shape")
        at = found.end()
    yield _Token("", len(text.rstrip()), False)


def _wrong(what: str, text: str, at: int) -> ValueError:
    return ValueError(f"{what}\n  {text}\n  {' ' * at}^")


def parse(text: str, dtype: str = "float32") -> Tensor:
    """The tensor that a text like "1000x20 @ 20x1000" describes; its operands are placeholders A, B, ... in order.

    Sizes are joined by x; `@` multiplies, `+` adds, `.T` transposes the last two axes of what it follows; parentheses
    group. Raises ValueError with the place where something is wrong, and the sizes where they do not fit.

    >>> parse("8x512x256 @ (512x256 + 512x256).T").shape
    (8, 512, 512)
    """
    return _Parser(text, dtype).whole()


class _Parser:
    """Recursive descent, a method for each level: sum, product, operand."""

    def __init__(self, text: str, dtype: str) -> None:
        self.text, self.dtype = text, dtype
        self.tokens = list(_tokens(text))
        self.operands = 0

    def whole(self) -> Tensor:
        found = self.sum()
        if self.tokens[0].text:
            raise _wrong("expected '@', '+' or the end here", self.text, self.tokens[0].at)
        return found

    def sum(self) -> Tensor:
        return self.chain("+", self.product, lambda a, b: a + b)

    def product(self) -> Tensor:
        return self.chain("@", self.operand, lambda a, b: a @ b)

    def chain(self, sign: str, level: Callable[[], Tensor], apply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        left = level()
        while self.tokens[0].text == sign:
            at = self.tokens.pop(0).at
            right = level()
            try:
                left = apply(left, right)
            except ValueError as e:
                raise _wrong(str(e), self.text, at) from None
        return left

    def operand(self) -> Tensor:
        token = self.tokens.pop(0)
        if token.text == "(":
            found = self.sum()
            closing = self.tokens.pop(0)
            if closing.text != ")":
                raise _wrong("expected ')' here", self.text, closing.at)
        elif token.is_shape:
            found = self.placeholder(token)
        else:
            raise _wrong("expected sizes like 1000x20 here", self.text, token.at)
        while self.tokens[0].text == ".T":
            at = self.tokens.pop(0).at
            if found.ndim < 2:
                raise _wrong(f".T needs two axes; this has the shape {found.shape}", self.text, at)
            found = found.mT
        return found

    def placeholder(self, token: _Token) -> Tensor:
        shape = [int(size) for size in token.text.split("x")]
        if 0 in shape:
            raise _wrong("a size of 0: nothing to plan", self.text, token.at)
        n = self.operands
        self.operands += 1
        return placeholder(self.dtype, shape, name=chr(ord("A") + n) if n < 26 else f"A{n}")


# -- machines as options -----------------------------------------------------------------------------------------------


def bytes_of(text: str) -> int:
    """A number of bytes, or of bytes a second, as people write it. ValueError for what is none.

    >>> bytes_of("80GB"), bytes_of("10 GB/s"), bytes_of("16 GiB")
    (80000000000, 10000000000, 17179869184)
    """
    found = parse_bytes(re.sub(r"\s*/\s*s$", "", text.strip()))
    if found <= 0:
        raise ValueError(f"needs more than 0, got {text!r}")
    return int(found)


def made_up(
    cpus: int | None = None,
    gpus: int | None = None,
    cpu_gflops: float = CPU_GFLOPS,
    gpu_gflops: float = GPU_GFLOPS,
    cpu_memory: str = CPU_MEMORY,
    gpu_memory: str = GPU_MEMORY,
    threads: int = 1,
    link: str | None = None,
    gpu_link: str | None = None,
    task_seconds: float = TASK_SECONDS,
) -> Machine:
    """A machine of that many equal CPU workers (one where only GPUs are named: somebody must hold the data) and GPUs.

    gflops: of a worker with all its threads at work; threads: of a CPU worker; link: bytes a second between workers;
    gpu_link: between a GPU and its host.

    >>> made_up(cpus=2, gpus=1)
    Machine(2 cpu: cpu-0 ..., 1 gpu: gpu-0)
    """
    count = cpus if cpus is not None else 1 if gpus else 0
    cpu = Device("cpu", bytes_of(cpu_memory), cpu_gflops, threads=threads)
    gpu = Device(
        "gpu", bytes_of(gpu_memory), gpu_gflops, host_device_bytes_per_s=bytes_of(gpu_link) if gpu_link else None
    )
    return Machine(
        tuple(
            [replace(cpu, name=f"cpu-{n}") for n in range(count)]
            + [replace(gpu, name=f"gpu-{n}") for n in range(gpus or 0)]
        ),
        link_bytes_per_s=bytes_of(link) if link else LINK_BYTES_PER_S,
        task_seconds=task_seconds,
    )


def described(connection: dict[str, Any], file: str | None, options: dict[str, Any]) -> Machine:
    """The machine that the command line speaks of: a file's, a running cluster's, a made-up one, or this one."""
    if file:
        return Machine.from_file(file)
    if connection:
        from distributed import Client

        with Client(**connection, set_as_default=False) as client:
            return machine_of(client)
    return made_up(**options) if options else Machine.local()


# -- the program -------------------------------------------------------------------------------------------------------


def show_plan(
    expression: str, dtype: str, machine: Machine, html: str | None = None, as_json: str | None = None
) -> Prediction:
    """Predict the expression on the machine, print what will happen, and write timeline and figures where asked."""
    found = simulate(parse(expression, dtype), machine)
    print(found.summary())
    if html:
        Path(html).write_text(to_html(found, title=expression), encoding="utf-8")
        print(f"  timeline: {html}")
    if as_json:
        figures = {"expression": expression, "dtype": dtype, "products": [str(p) for p in found.plan.products.values()]}
        Path(as_json).write_text(json.dumps({**figures, **found.figures()}, indent=1) + "\n")
    return found
