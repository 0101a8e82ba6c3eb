"""The timeline of a prediction as a page of its own: no script, nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from dask.utils import format_bytes

from taskgraph.prediction import Prediction, Row, product_text, time_text

#: Workers that get a lane, at the most (chosen: a page that one can still scroll through).
WORKERS = 48
#: Width of the drawing, and of the names left of it; bars that follow each other and are narrower together are one.
WIDTH, NAMES = 1200.0, 110.0
NARROW = {"compute": 1.5, "transfer": 4.0}
#: Heights of a thread's lane, of the lane of what arrives, and of the space between workers.
LANE, MOVES, SPACE = 14.0, 6.0, 5.0

STYLE = """
:root { color-scheme: light dark; --ink: #1c1f24; --dim: #667; --paper: #fff; --line: #d8dbe0; --tile: #2f6fde;
  --sum: #8a4fd3; --other: #2c9a62; --move: #e08a1e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8eaee; --dim: #9aa3b2; --paper: #15181d; --line: #333a45;
  --tile: #6d9cf5; --sum: #b48af0; --other: #5cc48f; --move: #f0ac55; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 24px auto;
  max-width: 1240px; padding: 0 12px; }
h1 { font-size: 19px; margin: 0 0 4px; overflow-wrap: anywhere; } p { color: var(--dim); margin: 4px 0; }
.figures { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0; }
.figures div { border: 1px solid var(--line); border-radius: 6px; padding: 6px 12px; }
.figures b { display: block; font-size: 18px; } .figures span { color: var(--dim); }
table { border-collapse: collapse; margin: 14px 0; } th { font-weight: 600; text-align: right; }
td, th { padding: 2px 12px; border-bottom: 1px solid var(--line); text-align: right; }
td:first-child, th:first-child { text-align: left; } svg { width: 100%; height: auto; display: block; }
text { font: 11px system-ui, sans-serif; fill: var(--ink); } .axis { stroke: var(--line); } .dim { fill: var(--dim); }
.tile { fill: var(--tile); } .sum { fill: var(--sum); } .other { fill: var(--other); } .move { fill: var(--move); }
rect { stroke: var(--paper); stroke-width: .5; }
.key { display: inline-block; width: 11px; height: 11px; margin: 0 4px 0 14px; }
"""


def to_html(prediction: Prediction, title: str = "plan") -> str:
    """The prediction as one HTML page: figures beside their bounds, a table of devices, and who does what when.

    Bars tell what they are when pointed at. Of many workers the busiest of each kind are drawn, and the page says so.

    >>> import taskgraph as tg
    >>> m = tg.Machine(devices=[tg.Device("cpu", 2**34, 50.0)] * 2)
    >>> x, y = (tg.placeholder("float32", (4096, 4096)) for _ in range(2))
    >>> page = to_html(tg.simulate(x @ y, m))
    >>> page[:15], "matmul[1,0]" in page
    ('<!DOCTYPE html>', True)
    """
    shown = _shown(prediction)
    every = prediction.plan.machine.devices
    emulated = sum(d.emulated for d in every)
    notes = [escape(product_text(p)) for p in list(prediction.plan.products.values())[:6]]
    if len(prediction.plan.products) > 6:
        notes.append(f"... and {len(prediction.plan.products) - 6} more products")
    if emulated:
        notes.append(f"{emulated} of the GPUs are emulated: they compute on the CPU")
    lines = [
        "<!DOCTYPE html>",
        f'<html lang="en"><head><meta charset="utf-8"/><title>{escape(title)}</title>',
        f"<style>{STYLE}</style></head><body>",
        f"<h1>{escape(title)}</h1>",
        f"<p>predicted for {len(every)} workers; nothing has run</p>",
        *[f"<p>{note}</p>" for note in notes],
        *_cards(prediction),
        *_table(prediction, shown),
        *_legend(prediction, shown),
        *_drawing(prediction, shown),
        "</body></html>",
    ]
    return "\n".join(lines) + "\n"


def _shown(p: Prediction) -> list[str]:
    """The workers that are drawn, in the machine's order: what does something; of many, the busiest of each kind."""
    active = {row.worker for row in p.timeline}
    devices = [d for d in p.plan.machine.devices if d.name in active]
    if len(devices) <= WORKERS:
        return [d.name for d in devices]
    kinds = [sorted([d for d in devices if d.kind == k], key=lambda d: -p.busy_seconds[d.name]) for k in ("gpu", "cpu")]
    fewer = min(kinds, key=len)[: WORKERS // 2]
    more = max(kinds, key=len)[: WORKERS - len(fewer)]
    chosen = {d.name for d in [*fewer, *more]}
    return [d.name for d in devices if d.name in chosen]


def _cards(p: Prediction) -> Iterator[str]:
    yield '<div class="figures">'
    beside = f"area bound {time_text(p.area_bound)}, critical path {time_text(p.critical_path)}"
    yield _card("makespan", time_text(p.makespan), f"{beside}, busiest link {time_text(p.link_bound)}")
    bound = format_bytes(int(p.bytes_bound))
    yield _card("moved between workers", format_bytes(p.bytes_moved), f"lower bound {bound}")
    fullest = max(p.plan.machine.devices, key=lambda d: p.peak_bytes[d.name] / d.memory_bytes)
    peak, limit = format_bytes(p.peak_bytes[fullest.name]), format_bytes(fullest.memory_bytes)
    yield _card("fullest memory", peak, f"of {limit} on {escape(fullest.name)}")
    yield _card("tiles", f"{sum(p.plan.tiles.values()):,}", f"in {sum(p.jobs.values()):,} jobs")
    yield "</div>"


def _card(name: str, value: str, beside: str) -> str:
    return f"<div><span>{name}</span><b>{value}</b><span>{beside}</span></div>"


def _table(p: Prediction, shown: Sequence[str]) -> Iterator[str]:
    by_name = {d.name: d for d in p.plan.machine.devices}
    open_tag = "<details><summary>devices</summary>" if len(shown) > 16 else ""
    heads = ("device", "tiles", "jobs", "computes", "peak", "memory")
    yield f"{open_tag}<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>"
    for name in shown:
        d = by_name[name]
        busy = p.busy_seconds[name] / d.threads / p.makespan if p.makespan else 0.0
        label = escape(name) + (" (emulated)" if d.emulated else "")
        cells = [p.plan.tiles.get(name, 0), p.jobs[name], f"{busy:.0%}", format_bytes(p.peak_bytes[name])]
        yield f"<tr><td>{label}</td>{''.join(f'<td>{c}</td>' for c in [*cells, format_bytes(d.memory_bytes)])}</tr>"
    yield "</table>" + ("</details>" if open_tag else "")


def _legend(p: Prediction, shown: Sequence[str]) -> Iterator[str]:
    names = {"tile": "tile of a product", "sum": "sum of panels", "other": "other work", "move": "arriving or copied"}
    keys = "".join(f'<span class="key" style="background: var(--{k})"></span>{name}' for k, name in names.items())
    yield f"<p>{keys}</p>"
    active, every = len({row.worker for row in p.timeline}), len(p.plan.machine.devices)
    if active < every:
        yield f"<p>{every - active} of {every} workers are not drawn: they compute nothing and get nothing</p>"
    if len(shown) < active:
        yield f"<p>of the other {active} workers {len(shown)} are drawn, the busiest of each kind</p>"


# -- the drawing -------------------------------------------------------------------------------------------------------


def _drawing(p: Prediction, shown: Sequence[str]) -> Iterator[str]:
    threads = {d.name: d.threads for d in p.plan.machine.devices}
    tops, height = {}, 20.0
    for name in shown:
        tops[name] = height
        height += LANE * threads[name] + MOVES + SPACE
    scale = (WIDTH - NAMES - 10) / (p.makespan or 1.0)
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH:g} {height:g}" role="img">'
    yield from _axis(p.makespan, scale, height)
    for name in shown:
        middle = tops[name] + LANE * threads[name] / 2 + 4
        yield f'<text x="{NAMES - 6:g}" y="{middle:.1f}" text-anchor="end">{escape(name[:18])}</text>'
    for (name, thread), rows in _lanes(p.timeline, tops).items():
        moves = thread == threads[name]
        top, tall = tops[name] + LANE * thread, MOVES if moves else LANE - 1
        for kind, start, stop, label in _merged(rows, scale):
            x, wide = NAMES + start * scale, max(0.3, (stop - start) * scale)
            said = f"{label}: {time_text(start)} to {time_text(stop)} on {name}"
            yield (
                f'<rect class="{kind}" x="{x:.2f}" y="{top:.1f}" width="{wide:.2f}" height="{tall:g}">'
                f"<title>{escape(said)}</title></rect>"
            )
    yield "</svg>"


def _axis(makespan: float, scale: float, height: float) -> Iterator[str]:
    step = 10 ** math.floor(math.log10(makespan)) if makespan > 0 else 1.0
    step = next(s for s in (step / 5, step / 2, step, 2 * step, 5 * step) if makespan / s <= 12)
    for n in range(int(makespan / step + 1e-9) + 1):
        x = NAMES + n * step * scale
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="16" y2="{height:g}"/>'
        yield f'<text class="dim" x="{x:.1f}" y="11" text-anchor="middle">{time_text(n * step)}</text>'


def _lanes(timeline: Iterable[Row], shown: Iterable[str]) -> dict[tuple[str, int], list[Row]]:
    lanes: dict[tuple[str, int], list[Row]] = {}
    wanted = set(shown)
    for row in timeline:
        if row.worker in wanted:
            lanes.setdefault((row.worker, row.thread), []).append(row)
    return lanes


def _merged(rows: Sequence[Row], scale: float) -> Iterator[tuple[str, float, float, str]]:
    """Class, start, stop and label of every bar; bars too narrow to see that follow each other are one."""
    run: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.start, r.stop)):
        fits = run and (row.stop - run[0].start) * scale <= NARROW[row.kind] and _class(row) == _class(run[0])
        if run and not fits:
            yield _bar(run)
            run = []
        run.append(row)
    if run:
        yield _bar(run)


def _bar(run: Sequence[Row]) -> tuple[str, float, float, str]:
    label = run[0].label if len(run) == 1 else f"{len(run)} bars, {run[0].label} to {run[-1].label}"
    return _class(run[0]), run[0].start, max(r.stop for r in run), label


def _class(row: Row) -> str:
    if row.kind == "transfer":
        return "move"
    if row.label.endswith(" sum"):
        return "sum"
    return "tile" if row.label.startswith("matmul") else "other"
