"""Parameters of a chapter: declared once, checked before anything is computed.

papermill sets the parameters of a notebook but does not know which exist: it only logs an unknown
name, and a YAML file hands ``1e-3`` on as text. Here every name, type and range is checked in the
first seconds, and all problems are reported at once.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from experiments.run.allowed import allowed_values
from experiments.run.chapter_source import literal_assignment, parameter_model, parameters_cell

Seed = Annotated[int, Field(ge=0)]
Model = TypeVar("Model", bound="ChapterParameters")


class ChapterParameters(BaseModel):
    """What every chapter can be told. A chapter's own parameters are the fields of a subclass.

    The fields have no default values: these stand in the chapter's parameters cell, where a reader
    sees them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    seeds: list[Seed] = Field(min_length=1, description="one repetition of the experiment per seed")
    # The choices of `ktlib.device`, which is not imported here because PyTorch is slow to import.
    device: Literal["auto", "cpu", "cuda", "mps"] = Field(
        description="where to compute; auto takes the fastest"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        description="precision of products and convolutions; auto is bfloat16 on a GPU that has it",
    )
    profile: str = Field(
        pattern="^[a-z][a-z0-9_-]*$", description="name of the set of values that is being run"
    )
    run_dir: str = Field(
        description="folder for result.json and figures; empty: nothing is written"
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("every seed may occur once only")
        return seeds


class ParameterError(ValueError):
    """Parameters that cannot be used; the message lists every problem."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and papermill show: the message, without the way it took to get here."""
        return [f"{type(self).__name__}: {self}"]


def check_parameters(namespace: Mapping[str, Any], model: type[Model]) -> Model:
    """Check the parameters of a notebook; called as ``check_parameters(globals(), Model)``.

    Belongs into the first cell after the parameters cell. Checks names, types and ranges, that the
    device is there, and that ``run_dir`` can be written to.

    Args:
        namespace: the notebook's names. Modules, functions, classes and other objects that no
            parameter can be are left alone.
        model: the chapter's parameters.

    Returns:
        The checked parameters; ``device`` and ``precision`` as given.

    Raises:
        ParameterError: lists every unknown or missing name and every value of a wrong type or
            range.
    """
    known = {name: namespace[name] for name in model.model_fields if name in namespace}
    unknown = {name: namespace[name] for name in _given(namespace, known) if name not in known}
    parameters = _validated({**known, **unknown}, model, where=f"`{model.__name__}`")
    problems = _machine_problems(parameters)
    if problems:
        raise ParameterError(_listed(problems, where=f"`{model.__name__}`"))
    return parameters


def check_parameter_file(
    chapter_source: Path | str, yaml_path: Path | str, model: type[Model] | None = None
) -> Model:
    """Check a parameter file against a chapter before a kernel is started.

    Args:
        chapter_source: the chapter, whose parameters cell gives the values that the file leaves
            out.
        yaml_path: a mapping from parameter to value.
        model: the chapter's parameters; ``None`` takes the model that the chapter itself uses.

    Returns:
        The parameters of such a run.

    Raises:
        ParameterError: as :func:`check_parameters`, or the file is no such mapping.
    """
    defaults = {line.name: line.value for line in parameters_cell(chapter_source)}
    used: type[Model] = parameter_model(chapter_source) if model is None else model
    return _validated({**defaults, **read_parameter_file(yaml_path)}, used, where=str(yaml_path))


def read_parameter_file(yaml_path: Path | str) -> dict[str, Any]:
    """The mapping in a parameter file; an empty file is an empty mapping.

    Raises:
        ParameterError: the file is not YAML, not a mapping from names, or names a parameter twice.
    """
    import yaml  # belongs to the `book` extra

    path = Path(yaml_path)
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ParameterError(f"{path}: not a YAML file: {error}") from error
    if node is None or values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{path}: must hold lines `name: value`. Found {values!r}.")
    names = [key.value for key, _ in node.value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"{path}: each parameter may stand once. Found twice: {twice}.")
    return values


def describe_parameters(
    chapter_source: Path | str, model: type[ChapterParameters] | None = None
) -> list[dict[str, Any]]:
    """Rows for the book's table of a chapter's parameters: name, default, allowed, comment."""
    used: type[ChapterParameters] = parameter_model(chapter_source) if model is None else model
    return [
        {
            "name": line.name,
            "default": line.value,
            "allowed": allowed_values(used, line.name),
            "comment": line.comment,
        }
        for line in parameters_cell(chapter_source)
    ]


def _validated(values: Mapping[str, Any], model: type[Model], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_problem(detail, values, model) for detail in error.errors()]
        raise ParameterError(_listed(problems, where)) from None


def _listed(problems: list[str], where: str) -> str:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    return "\n".join([f"{count} with the parameters ({where}):", *(f"- {p}" for p in problems)])


def _problem(detail: ErrorDetails, values: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One line for one problem: the parameter, the value found, what is allowed."""
    if not detail["loc"]:  # a rule about several parameters together
        return detail["msg"].removeprefix("Value error, ")
    name = str(detail["loc"][0])
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, model.model_fields, n=3)
        hint = f"Did you mean {' or '.join(f'`{n}`' for n in near)}? " if near else ""
        return (
            f"`{name}` = {values[name]!r} is not a parameter here. {hint}"
            f"Allowed: {', '.join(sorted(model.model_fields))}."
        )
    allowed = allowed_values(model, name)
    if detail["type"] == "missing":
        return f"`{name}` is missing. Allowed: {allowed}."
    message = f"`{name}` = {values[name]!r} is not allowed. Allowed: {allowed}."
    if detail["type"] == "value_error":
        message += f" Rule: {detail['msg'].removeprefix('Value error, ')}."
    if _is_number(detail["input"]):
        message += (
            f" {detail['input']!r} is text: in YAML write a number without quotes and with a "
            "decimal point, 1.0e-3 and not 1e-3."
        )
    return message


def _is_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def _machine_problems(parameters: ChapterParameters) -> list[str]:
    """What the values ask for and this machine does not have."""
    from ktlib.device import choose_device, compute_dtype  # PyTorch is slow to import

    problems = []
    try:
        device = choose_device(parameters.device)
        compute_dtype(device, parameters.precision)
    except ValueError as error:
        problems.append(str(error))
    if parameters.run_dir:
        try:
            _try_to_write(Path(parameters.run_dir))
        except OSError as error:
            problems.append(
                f"`run_dir` = {parameters.run_dir!r} cannot be written to: {error.strerror}."
            )
    return problems


def _try_to_write(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / ".write-test"
    probe.write_bytes(b"\0" * 4096)  # a full disk takes an empty file, but no block
    probe.unlink()


def _given(namespace: Mapping[str, Any], known: Mapping[str, Any]) -> list[str]:
    """Names that were given as parameters, known or not.

    In the first pass these are all public names bound to plain data: the check stands before
    anything was computed. When a reader runs the check again, the notebook's results are plain data
    too, and only the parameter cells run just before count.
    """
    history = namespace.get("In")
    cells = [str(source) for source in history[:-1]] if isinstance(history, list) else []
    if any("check_parameters(" in source for source in cells):
        return _names_in_last_parameter_cells(cells, known)
    plain = (bool, int, float, str, list, dict, tuple, type(None))
    return [
        name
        for name, value in namespace.items()
        if type(value) in plain and not name.startswith("_") and name not in {"In", "Out"}
    ]


def _names_in_last_parameter_cells(cells: list[str], known: Mapping[str, Any]) -> list[str]:
    """Names in the last cells that hold literals only and at least one parameter."""
    names: list[str] = []
    for source in reversed(cells):
        try:
            pairs = [literal_assignment(line, where="") for line in ast.parse(source).body]
        except (SyntaxError, ValueError):
            break
        if not any(name in known for name, _ in pairs):
            break
        names = [name for name, _ in pairs] + names
    return names
