"""Run every chapter at its smoke size with each parameter at its legal extremes: ``make drill``.

The extremes are the lowest and the highest value that the chapter's model accepts beside the smoke
values, every other choice, and the shortest and the longest list. A highest count may only take
longer than anyone waits: beside it, twice the smoke value is tried. Names of files and models, and
``device``, are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from data_prep import DataError
from experiments.run.chapter_source import (
    code_cells,
    imported_names,
    parameter_model,
    parameters_cell,
    plain_python,
)
from experiments.run.parameters import read_parameter_file, shown
from experiments.run.provenance import run_digest
from workflow.project import ROOT, RUNS, chapter_source, chapters, parameter_file
from workflow.run_chapter import RECORD, kernel_environment

HELD, LATE, INFINITE = "held", "late failure", "not finite"
REFUSED = "refused"  # before the first step of an optimiser, in words that name the parameter
DIVERGED = "diverged"  # no loss of a number: a chapter must stop and name the rate to lower
OVER = "over limits"  # of time or memory, without a fault until then
OUTCOMES = (HELD, REFUSED, DIVERGED, OVER, LATE, INFINITE)
FAULTS = (LATE, INFINITE)
MEMORY_BYTES = 6 * 2**30
FOLDER = RUNS / "drill"
Legal = Callable[[Any], bool]
Result = dict[str, Any]


def extremes(model: type[BaseModel], base: Mapping[str, Any], name: str) -> list[Any]:
    """The extreme values of one parameter that a model accepts, the others as in ``base``."""

    def legal(value: Any) -> bool:
        with contextlib.suppress(ValidationError):
            model.model_validate({**base, name: value})
            return True
        return False

    schema = model.model_json_schema()["properties"][name]
    found = {json.dumps(value): value for value in _candidates(schema, base[name], legal)}
    return [value for value in found.values() if value != base[name] and legal(value)]


def _candidates(schema: Mapping[str, Any], base: Any, legal: Legal) -> Iterator[Any]:
    kind = schema.get("type")
    if "enum" in schema:
        yield from schema["enum"]
    elif kind == "boolean":
        yield not base
    elif kind in {"integer", "number"}:
        yield from _ends(schema, base, legal)
    elif kind == "array":
        inner, shorter, longer = schema["items"], base, base
        ends: Iterable[Any] = dict.fromkeys(
            x
            for item in base[:1]
            for x in _candidates(inner, item, lambda x: legal([x]) or legal([*base, x]))
        )
        for x in reversed(base):
            fewer = [y for y in shorter if y != x]
            shorter = fewer if legal(fewer) else shorter
        for x in ends:
            more = [*longer, x] if base != sorted(base) else sorted([*longer, x])
            longer = more if x not in longer and legal(more) else longer
        yield from (shorter, longer)
        yield from ([x] for x in ends if "enum" not in inner)
    elif kind == "object":
        yield {}
        inner = schema["additionalProperties"]
        for key, item in base.items():
            ends = _candidates(inner, item, partial(_legal_at, legal, base, key))
            yield from ({**base, key: x} for x in ends)


def _legal_at(legal: Legal, base: Mapping[str, Any], key: str, value: Any) -> bool:
    return legal({**base, key: value})


def _ends(schema: Mapping[str, Any], base: Any, legal: Legal) -> Iterator[float]:
    """Lowest and highest legal number, and about twice ``base`` where the highest is above it."""
    if schema["type"] == "integer":
        low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63)
        near = range(max(low, base - 500), min(high, base + 500) + 1)  # some must divide others
        around = [value for value in near if legal(value)] or [base]
        yield min(_last_legal(base, low, legal), around[0])
        yield (top := max(_last_legal(base, high, legal), around[-1]))
        if 2 * base < top:
            yield max((value for value in around if value <= 2 * base), default=base)
    else:
        for key, side in (("inimum", -math.inf), ("aximum", math.inf)):
            end = schema.get(f"m{key}", math.copysign(sys.float_info.max, side))
            if (beyond := schema.get(f"exclusiveM{key}")) is not None:
                end = math.nextafter(beyond, -side)
            yield _last_legal(float(base), float(end), legal)


def _last_legal(inside: Any, end: Any, legal: Legal) -> Any:
    """The end, or where it is not legal the last number before it by bisection."""
    if legal(end):
        return end
    while True:
        middle = (inside + end) // 2 if isinstance(end, int) else inside / 2 + end / 2
        if middle in (inside, end):
            return inside
        inside, end = (middle, end) if legal(middle) else (inside, middle)


def drill(chapter: str, parameter: str | None = None) -> list[Result]:
    """Try the extremes of one chapter; what an earlier call tried with the same code stays."""
    source, file = chapter_source(chapter), parameter_file(chapter, "smoke")
    digest, model = run_digest(source, file), parameter_model(source)
    base = {line.name: line.value for line in parameters_cell(source)}
    base |= read_parameter_file(file) | {"profile": "smoke", "device": "cpu"}
    # Each value is run in a fork of this process, and need not import them again.
    for module in ["torch", "ktlib.device", *(module for module, _ in imported_names(source))]:
        import_module(module)
    log = FOLDER / f"{chapter}.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
    known = {
        (old["parameter"], json.dumps(old["value"])): old
        for old in map(json.loads, lines)
        if old["digest"] == digest
    }
    names = [name for name in base if name != "device" and parameter in (None, name)]
    seconds, results = 3600.0, []
    for name, value in [("", None), *((n, v) for n in names for v in extremes(model, base, n))]:
        result = known.get((name, json.dumps(value)))
        if result is None:
            changed = {**base, **({name: value} if name else {})}
            result = {"digest": digest, "chapter": chapter, "parameter": name, "value": value}
            result |= _outcome(source, changed, name, seconds)
            with log.open("a", encoding="utf-8") as lines_out:
                lines_out.write(json.dumps(result) + "\n")
            print(_row(result), flush=True)
        if not name:  # the smoke values themselves come first
            seconds = result["seconds"] + 10
        results.append(result)
    return results


def _outcome(source: Path, values: dict[str, Any], name: str, seconds: float) -> Result:
    """Run the cells in a fork of this process, within the limits of time and memory.

    Time is that of the processor, so that a busy machine finds the same.
    """
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)
    took = 0.0
    with tempfile.TemporaryDirectory() as folder:
        values = {**values, "run_dir": f"{folder}/run"}
        process = fork.Process(target=_run_cells, args=(source, values, name, seconds, sender))
        process.start()
        sender.close()
        try:
            outcome, detail, took = receiver.recv()
        except EOFError:
            outcome, detail = LATE, "the process died"
        process.kill()
        process.join()
    return {"outcome": outcome, "seconds": round(took), "detail": detail}


def _run_cells(
    source: Path, values: dict[str, Any], name: str, seconds: float, sender: Connection
) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def end(*_: object) -> None:
        sender.send((OVER, f"no fault in {seconds:.0f} s", time.process_time()))
        os._exit(0)

    signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    os.chdir(ROOT)
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    steps: list[int] = []
    register_optimizer_step_post_hook(lambda *_: steps.append(1))
    names: dict[str, Any] = {"__name__": "chapter", "display": print}
    where = ""
    try:
        for cell in code_cells(source):
            where = f"cell {cell.number}, `{cell.first_line}`: "
            exec(compile(plain_python(cell.source), where, "exec"), names)  # noqa: S102
            if "parameters" in cell.tags:
                names |= values
        where = ""
        Path(values["run_dir"], RECORD).read_bytes()
        sender.send((HELD, "", time.process_time()))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        kind = _kind(error, name, values.get(name), trained=bool(steps))
        sender.send((kind, where + text, time.process_time()))


def _kind(error: Exception, name: str, value: Any, *, trained: bool) -> str:
    if isinstance(error, MemoryError) or "allocate" in str(error):
        return OVER
    if "must be finite" in str(error):  # so records refuse a number
        return INFINITE
    if isinstance(error, FloatingPointError) and (name in str(error) or "lr" in name):
        return DIVERGED
    refusals = (ValueError, FileNotFoundError, DataError)  # data sets are named by their value
    named = isinstance(error, refusals) and bool(name)
    named = named and (name in str(error) or (isinstance(value, str) and value in str(error)))
    return REFUSED if named and not trained else LATE


def _row(result: Result) -> str:
    name, value, seconds = result["parameter"], shown(result["value"]), result["seconds"]
    tried = f"{name} = {value}" if name else "smoke"
    words = (result["chapter"], tried, result["outcome"], f"{seconds} s", result["detail"])
    return "| " + " | ".join(" ".join(w.split()).replace("|", "\\|")[:400] for w in words) + " |"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status: 1 if any value failed late or was not finite."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--chapter", choices=chapters(), help="only this chapter")
    parser.add_argument("--parameter", help="only this parameter")
    parser.add_argument("--jobs", type=int, default=1, help="chapters at once")
    given = parser.parse_args(arguments)
    os.environ.update(kernel_environment(1, 1), KTLIB_WORKERS="1", KTLIB_CACHE="", MPLBACKEND="Agg")
    names = [given.chapter] if given.chapter else chapters()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(given.jobs, mp_context=spawn) as pool:
        found = pool.map(drill, names, [given.parameter] * len(names))
        results = [result for chapter in found for result in chapter]
    results.sort(key=lambda result: -OUTCOMES.index(result["outcome"]))
    table = ["| Chapter | Value | Outcome | Time | Detail |", "|---|---|---|---|---|"]
    (FOLDER / "report.md").write_text("\n".join([*table, *map(_row, results), ""]))
    counts = Counter(result["outcome"] for result in results)
    print(", ".join(f"{counts[kind]} {kind}" for kind in OUTCOMES))
    print(f"Table: {FOLDER.relative_to(ROOT) / 'report.md'}")
    return int(any(counts[kind] for kind in FAULTS))


if __name__ == "__main__":
    sys.exit(main())
