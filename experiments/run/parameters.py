"""Parameters of a chapter: declared once, checked before anything is computed.

papermill sets the parameters of a notebook but does not know which exist: it only logs an unknown
name, and a YAML file passes ``1e-3`` on as text. The pipeline checks a run with
:func:`check_parameter_file` before it starts a kernel. Each chapter also calls
:func:`check_parameters`, for those who run it with papermill or Jupyter. Both report all problems
at once.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from experiments.run.chapter_source import parameter_model, parameters_cell
from experiments.run.run_folder import claim

LARGEST_SEED = 2**32 - 1  # of NumPy's RandomState, which draws sessions and tasks
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
SMALLEST_RATE = 1e-9  # a smaller one moves no weight in float32: nothing would be trained
LearningRate = Annotated[float, Field(ge=SMALLEST_RATE, le=10)]
Model = TypeVar("Model", bound="ChapterParameters")
Item = TypeVar("Item")


def _distinct(values: list[Item]) -> list[Item]:
    if len(set(values)) != len(values):
        raise ValueError("values must differ from each other")
    return values


Distinct = Annotated[list[Item], AfterValidator(_distinct)]
Studied = Annotated[Distinct[Item], Field(min_length=1)]
MethodSettings = dict[str, dict[str, float]]  # method -> knob -> value


class ChapterParameters(BaseModel):
    """Parameters that all chapters share. A chapter's own parameters are the fields of a subclass.

    The fields have no default values: these are in the chapter's parameters cell, where a reader
    sees them. A lesson may leave out what it does not speak of, and a run may still set it.

    Attributes:
        reference: values of the fields that the cell of a chapter leaves out.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)
    reference: ClassVar[Mapping[str, Any]] = {}

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

    @model_validator(mode="before")
    @classmethod
    def _with_reference(cls, values: dict[str, Any]) -> dict[str, Any]:
        return {**cls.reference, **values}

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must differ from each other")
        return seeds

    @field_validator("run_dir")
    @classmethod
    def _path(cls, run_dir: str) -> str:
        if not run_dir.isprintable():
            raise ValueError("must be a path without control characters")
        try:
            return str(Path(run_dir).expanduser()) if run_dir else ""
        except RuntimeError as error:  # `~name` of a user that is not there
            raise ValueError(str(error).rstrip(".")) from None


class ParameterError(ValueError):
    """Parameters that cannot be used; the message lists every problem."""

    def _render_traceback_(self) -> list[str]:
        """What IPython and papermill show: the message without the call stack."""
        return [f"{type(self).__name__}: {self}"]


def check_parameters(namespace: Mapping[str, Any], model: type[Model]) -> Model:
    """Check the parameters in the names of a notebook.

    The first cell after the parameters cell calls it: ``P = check_parameters(globals(), Model)``.
    Checks names, types and ranges, that the device exists, and that ``run_dir`` is writable and of
    no other run; what an earlier run wrote there is removed.

    Args:
        namespace: the notebook's names. The first time, every public name with a plain value must
            be a parameter. Once checked parameters are among the values, the notebook has results
            as well, and only the known names are looked at.
        model: the chapter's parameters.

    Returns:
        The checked parameters; ``device`` and ``precision`` as given.

    Raises:
        ParameterError: lists every unknown or missing name and every value of a wrong type or
            range.
    """
    given = {name: value for name, value in namespace.items() if name in model.model_fields}
    if not any(isinstance(value, ChapterParameters) for value in namespace.values()):
        plain = (bool, int, float, str, list, dict, tuple, type(None))
        given |= {
            name: value
            for name, value in namespace.items()
            if type(value) in plain and not name.startswith("_") and name not in {"In", "Out"}
        }
    where = f"`{model.__name__}`"
    parameters = _validated(given, model, where)
    problems = _machine_problems(parameters)
    if problems:
        raise _refusal(problems, where)
    return parameters


def check_parameter_file(
    chapter_source: Path | str,
    yaml_path: Path | str,
    model: type[Model] | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Model:
    """Check a parameter file against a chapter before a kernel is started.

    Args:
        chapter_source: the chapter, whose parameters cell gives the values that the file omits.
        yaml_path: a mapping from parameter to value.
        model: the chapter's parameters; ``None`` takes the model that the chapter itself uses.
        changes: values of one run that replace those of the file.

    Returns:
        The parameters of such a run.

    Raises:
        ParameterError: as :func:`check_parameters`, or the file is not such a mapping.
    """
    defaults = {line.name: line.value for line in parameters_cell(chapter_source)}
    used: type[Model] = parameter_model(chapter_source) if model is None else model
    changes = changes or {}
    values = {**defaults, **read_parameter_file(yaml_path), **changes}
    where = [str(yaml_path), *(f"{name} = {shown(value)}" for name, value in changes.items())]
    return _validated(values, used, where=", ".join(where))


def read_parameter_file(yaml_path: Path | str) -> dict[str, Any]:
    """The mapping in a parameter file; an empty file is an empty mapping.

    Raises:
        ParameterError: the file cannot be read, is not YAML, not a mapping from names, or names a
            parameter twice.
    """
    import yaml  # belongs to the `book` extra

    file = _cut(str(yaml_path))
    try:
        text = Path(yaml_path).read_text(encoding="utf-8")
        values, node = yaml.safe_load(text), yaml.compose(text, Loader=yaml.SafeLoader)
    except OSError as error:
        raise ParameterError(f"{file}: cannot be read: {error.strerror}.") from error
    except RecursionError:
        raise ParameterError(f"{file}: not a file of parameters: nested too deeply.") from None
    # The values of some tags (`!!timestamp x`) end in errors of Python.
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise ParameterError(f"{file}: not a YAML file: {_cut(str(error), 500)}") from error
    if node is None or values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{file}: must consist of lines `name: value`. Found {shown(values)}.")
    names = [key.value for key, _ in node.value]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ParameterError(f"{file}: each parameter may be set once. Found twice: {twice}.")
    return values


def describe_parameters(chapter_source: Path | str) -> list[dict[str, Any]]:
    """Rows for the book's table of a chapter's parameters: name, default, allowed, comment."""
    schema = parameter_model(chapter_source).model_json_schema()
    return [
        {
            "name": line.name,
            "default": line.value,
            "allowed": _allowed(schema["properties"][line.name]),
            "comment": line.comment,
        }
        for line in parameters_cell(chapter_source)
    ]


_TYPES = {"array": "list", "object": "mapping", "string": "text", "boolean": "True or False"}
_BOUNDS = {
    "exclusiveMinimum": ">",
    "minimum": ">=",
    "exclusiveMaximum": "<",
    "maximum": "<=",
    "minItems": "with at least",
    "maxItems": "at most",
}


def _allowed(schema: Mapping[str, Any]) -> str:
    """What a JSON schema of a field accepts: ``"integer >= 1 and <= 64"``, ``"'sgd', 'adam'"``."""
    if "enum" in schema or "const" in schema:
        return ", ".join(map(repr, schema.get("enum") or [schema["const"]]))
    if "anyOf" in schema:
        return " or ".join(map(_allowed, schema["anyOf"]))
    kind = schema.get("type", "value")
    text = _TYPES.get(kind, kind)
    inner = schema.get("items") or schema.get("additionalProperties")
    if inner:
        text += f" of ({_allowed(inner)})"
    # .15g: `1` for 1.0, and all digits of 2**32
    bounds = [f"{sign} {schema[key]:.15g}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([text, " and ".join(bounds)]).strip()


def _validated(values: Mapping[str, Any], model: type[Model], where: str) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _refusal([_problem(detail, model) for detail in error.errors()], where) from None
    except ValueError:  # pydantic cannot even name a number of so many digits
        problem = "a whole number has more digits than Python reads"
        raise _refusal([problem], where) from None


def _refusal(problems: list[str], where: str) -> ParameterError:
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    lines = [f"- {_cut(problem, 1000)}" for problem in problems[:MOST_PROBLEMS]]
    if len(problems) > MOST_PROBLEMS:
        lines.append(f"- and {len(problems) - MOST_PROBLEMS} more")
    return ParameterError("\n".join([f"{count} with the parameters ({where}):", *lines]))


def _problem(detail: ErrorDetails, model: type[BaseModel]) -> str:
    """One line for one problem: the parameter, the value found, what is allowed."""
    rule = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:  # a rule about several parameters together
        return rule
    name, *inside = detail["loc"]
    if detail["type"] == "missing":
        return f"`{name}` is missing."
    value = detail["input"]
    found = f"`{_cut(str(name))}{''.join(f'[{shown(key)}]' for key in inside)}` = {shown(value)}"
    if detail["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(name)[:100], model.model_fields, n=3)
        names = " or ".join(f"`{n}`" for n in near)
        hint = f"Did you mean {names}?" if near else f"Known: {', '.join(model.model_fields)}."
        return f"{found} is not a parameter here. {hint}"
    hint = _hint(detail["type"], str(name), value) if not inside else ""
    if not hint and detail["type"] in {"int_type", "float_type"} and isinstance(value, str):
        hint = " It is text: in YAML write a number as 1.0e-3, not 1e-3, and without quotes."
    return f"{found} is not allowed: {rule[0].lower()}{rule[1:]}.{hint}"


_OPENING = {"list_type": "[", "dict_type": "{"}


def _hint(kind: str, name: str, value: Any) -> str:
    """How a value is written that papermill's ``-p`` hands on as another kind than was meant."""
    if kind in _OPENING and isinstance(value, str | int | float):
        text = _cut(str(value).strip())
        if kind == "list_type" and not text.startswith("["):
            text = f"[{text}]"
        if not text.startswith(_OPENING[kind]):
            text = "{name: value}"
        form = "{" + f"{name}: {text}" + "}"
        return f" Write `{form[1:-1]}` in a file, and with papermill -y '{form}'"
    if kind == "bool_type" and str(value).lower() in {"true", "false"}:
        return f" With papermill write: -p {name} {str(value).capitalize()}"
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f" With papermill write: -r {name} {value}"
    return ""


MOST_PROBLEMS = 20
_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxstring, _REPR.maxother, _REPR.maxlong = 4, 150, 150, 60
_REPR.maxdict = _REPR.maxlist = _REPR.maxtuple = _REPR.maxset = 20


def shown(value: Any) -> str:
    """A value for a message, with at most 200 characters."""
    try:
        return _cut(repr(value) if isinstance(value, float) else _REPR.repr(value))
    except ValueError:  # a whole number of more digits than Python writes out
        return "a number of thousands of digits"


def _cut(text: str, most: int = 200) -> str:
    return text if len(text) <= most else f"{text[: most - 60]} ... {text[-50:]}"


def _machine_problems(parameters: ChapterParameters) -> list[str]:
    """What the values ask for and this machine does not have."""
    from ktlib.device import choose_device, compute_dtype  # PyTorch is slow to import

    problems = []
    try:
        compute_dtype(choose_device(parameters.device), parameters.precision)
    except ValueError as error:
        problems.append(str(error))
    problem = claim(Path(parameters.run_dir)) if parameters.run_dir and not problems else None
    if problem:
        problems.append(f"`run_dir` = {shown(parameters.run_dir)} {problem}.")
    return problems


def is_file(path: str) -> bool:
    """Whether a text names a file; no for one that can be no path."""
    try:
        return Path(path).expanduser().is_file()
    except (OSError, ValueError, RuntimeError):
        return False


def is_folder(path: str) -> bool:
    """Whether a text names a folder; no for one that can be no path."""
    try:
        return Path(path).expanduser().is_dir()
    except (OSError, ValueError, RuntimeError):
        return False
