"""The derivative rules that there are, as the table that docs/derivatives.md shows: read off the rows themselves.

A row's note is what the docstring of the public function of its name says about derivatives, so whoever documents an
operation has written its line here, and a new row has one without a word in this file.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import taskgraph.ops
from taskgraph.primitives import TABLE, Primitive, no_gradient, no_inputs

HEAD = """\
# Derivatives

<!-- Made by `make docs` (`taskgraph rules`) from the primitive table; a test compares. Edit taskgraph/rules.py or the
docstrings instead. -->

Every operation is made of the primitives below. A primitive that has a rule can be differentiated in that mode, to any
order, since a rule is written in public operations.

| in the table | it means |
| --- | --- |
| yes | there is a rule |
| zero | the result is constant almost everywhere (or to the passes, as `stop_gradient`): zeros, where others refuse |
| refused | there is no rule: `NotImplementedError`, naming the primitive, when the derivative is asked for |
| no inputs | made of no tensor: there is nothing to differentiate with respect to |

What holds for all of them:

- Integers and booleans carry no derivative. With respect to them it is refused (`TypeError`); a path through them ends.
{complex}\
- Where elements tie in `maximum`, `minimum`, `max` or `min`, they share the gradient equally. `abs` and the 2-norm have
  derivative 0 at 0. `clip` is made of `maximum` and `minimum`.
- Where a derivative is infinite it is `inf` (`sqrt` at 0), and `0 * inf` is NaN: in reverse mode the branch that a
  `where` does not take makes NaN if its own derivative is not finite there. Guard its argument, too:
  `where(x > 0, log(where(x > 0, x, 1)), 0)`.
- The gradient of a `max` or `min` that is NaN is NaN everywhere.
"""

COMPLEX = "- Complex arrays are refused by both passes (`NotImplementedError`), also on the way to real ones.\n"


def rules() -> str:
    """The page, as Markdown."""
    lines = [HEAD.format(complex=COMPLEX if TABLE["real"].vjp is None else "")]
    lines += ["## Primitives", "", "| primitive | kind | reverse | forward | note |", "| --- | --- | --- | --- | --- |"]
    for row in sorted(TABLE.values(), key=lambda row: row.name):
        cells = (f"`{row.name}`", row.kind, said(row.vjp), said(row.jvp), note(row))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Made of them", "", "These have the rules of the primitives that they use:", ""]
    lines += wrapped([f"`{name}`" for name in composed()])
    return "\n".join([*lines, ""])


def said(rule: Any) -> str:
    """A rule in a word.

    >>> said(None), said(no_gradient)
    ('refused', 'zero')
    """
    words = {None: "refused", no_gradient: "zero", no_inputs: "no inputs"}
    return words.get(rule, "yes")


def note(row: Primitive) -> str:
    """What the public function of the row's name says about derivatives, sentence by sentence.

    >>> note(TABLE["maximum"])
    'at ties each input gets half of the gradient'
    """
    f = next((f for module in modules() if callable(f := getattr(module, row.name, None))), None)
    text = " ".join((getattr(f, "__doc__", None) or "").split(">>>")[0].split())
    parts = [part.strip().rstrip(".") for part in re.split(r"(?<=[.;])(?=\s)", text)]
    return "; ".join(part.rstrip(";") for part in parts if re.search("gradient|derivative|[Dd]ifferentia", part))


def composed() -> list[str]:
    """The public functions on arrays that have no row of their own."""
    inputs_only = ("create", "dtypes", "arguments")  # they make arrays of nothing, or make none
    found = {
        name: value
        for module in modules()
        if module.__name__.rpartition(".")[2] not in inputs_only
        for name, value in vars(module).items()
        if getattr(value, "__module__", None) == module.__name__ and not isinstance(value, type)
    }
    public = {name for name, value in vars(taskgraph.ops).items() if callable(value)}
    for extension in ("taskgraph.linalg", "taskgraph.fft"):  # the facade has imported those that there are
        public |= set(getattr(sys.modules.get(extension), "__all__", ()))
    return sorted(name for name in found if name in public and name not in TABLE and not name.startswith("_"))


def modules() -> Iterator[ModuleType]:
    """The modules of `taskgraph.ops`."""
    for found in pkgutil.iter_modules(taskgraph.ops.__path__, "taskgraph.ops."):
        yield importlib.import_module(found.name)


def wrapped(words: list[str], width: int = 120) -> list[str]:
    """The words, a comma behind each, in lines of that width at most."""
    lines = [""]
    for n, word in enumerate(words):
        word += "." if n == len(words) - 1 else ","
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] += f" {word}" if lines[-1] else word
    return lines
