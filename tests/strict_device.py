"""A device that is no CPU, on any machine: faults that only a GPU would show.

PyTorch's Python backend takes the place of an accelerator. A tensor on ``strict:0`` says that it
lies there, holds a tensor of the CPU that does the work, and runs forward and backward. It refuses
what CUDA refuses:

* an operation on tensors of it and of the CPU (CUDA takes numbers without dimensions in pointwise
  operations, and indices of the CPU; so does this),
* random numbers from a generator of the CPU; it has a stream of its own, seeded by
  ``torch.manual_seed``,
* NumPy's view of its memory.

:func:`recorded` lists what makes a real device wait: values that are read back, and results whose
size depends on values. No time is measured, and no kernel of a GPU runs: rounding, missing kernels,
precision and memory are for a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch

NAME = "strict"
_SETUP = "_setup_privateuseone_for_python_backend"
_COPIES = {"aten::_to_copy", "aten::copy_"}
_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
# Not pointwise, and yet CUDA takes a number of the CPU in them.
_TAKE_NUMBERS = ("aten::fill", "aten::masked_fill", "aten::index_fill", "aten::_foreach_")
# Made on the device out of nothing; all others go through `empty` and an operation in place.
_FACTORIES = (
    *("arange", "arange.start", "arange.start_step", "empty.memory_format", "empty_strided"),
    *("eye", "eye.m", "linspace", "randperm", "randperm.generator", "tril_indices"),
    "triu_indices",
)


@dataclass
class Record:
    """What made the device wait, by the names of the operations, in their order.

    Attributes:
        reads: values that went back to the CPU: ``.item()``, ``float``, ``bool``, ``.cpu()``,
            ``.tolist()``, ``torch.equal``, pickling.
        waits: operations whose size of the result depends on values: ``unique``, ``nonzero``,
            indexing by a mask.
    """

    reads: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


class StrictTensor(Tensor):
    """A tensor on the strict device; ``raw`` is the one of the CPU that it stands for."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> StrictTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.size(),
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied = StrictTensor(self.raw.detach().clone())
            if isinstance(self, nn.Parameter):
                memo[id(self)] = nn.Parameter(copied, self.requires_grad)
            else:
                memo[id(self)] = copied.requires_grad_(self.requires_grad)
        return memo[id(self)]

    def __reduce_ex__(self, _protocol: Any) -> Any:
        """Whoever unpickles it gets it on this device again."""
        _note("reads", "pickle")
        is_parameter = isinstance(self, nn.Parameter)
        return _unpickled, (self.raw.detach(), is_parameter, self.requires_grad)

    def tolist(self) -> Any:
        _note("reads", "tolist")
        return self.raw.tolist()

    def numpy(self, *_args: Any, **_options: Any) -> Any:
        raise TypeError(f"can't convert a {NAME} tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def __repr__(self, **_options: Any) -> str:
        return f"{self.raw!r} on {NAME}"


def missing() -> str | None:
    """Why this version of PyTorch has no strict device, if so."""
    if hasattr(backend_registration, _SETUP):
        return None
    return f"PyTorch {torch.__version__} makes no accelerator out of Python."


@contextmanager
def active() -> Iterator[torch.device]:
    """Give PyTorch the strict device; outside the block it says that there is none."""
    install()
    swap = torch.__future__.get_swap_module_params_on_conversion()
    # Else `module.to` would replace parameters, which on CUDA stay the same objects.
    torch.__future__.set_swap_module_params_on_conversion(True)
    _MODULE.present = True
    try:
        yield torch.device(NAME, 0)
    finally:
        _MODULE.present = False
        torch.__future__.set_swap_module_params_on_conversion(swap)


@contextmanager
def recorded() -> Iterator[Record]:
    """List what makes the device wait inside the block."""
    record = Record()
    _records.append(record)
    try:
        yield record
    finally:
        _records.remove(record)


class _Module:
    """What ``torch.strict`` is, as ``torch.cuda`` is that of CUDA."""

    def __init__(self) -> None:
        self.present = False
        self.stream = torch.Generator().manual_seed(0)

    def is_available(self) -> bool:
        return self.present

    def is_initialized(self) -> bool:
        return self.present

    def device_count(self) -> int:
        return int(self.present)

    def current_device(self) -> int:
        return 0

    def synchronize(self, _device: Any = None) -> None:
        """Nothing runs beside the program."""

    def _is_in_bad_fork(self) -> bool:
        return False

    def manual_seed_all(self, seed: int) -> None:
        self.stream.manual_seed(seed)

    def get_rng_state(self, _device: Any = 0) -> Tensor:
        return self.stream.get_state()

    def set_rng_state(self, state: Tensor, _device: Any = 0) -> None:
        self.stream.set_state(state)

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]


_MODULE = _Module()
_records: list[Record] = []
_library: list[torch.library.Library] = []  # its kernels live as long as it does


def install() -> None:
    """Make the backend, once in a process and before its first backward pass."""
    if _library or missing():
        return
    getattr(backend_registration, _SETUP)(NAME, _MODULE)
    _library.append(torch.library.Library("aten", "IMPL"))
    for name in _FACTORIES:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(torch.ops.aten, packet), overload or "default")
        _library[0].impl(name, _kernel(func), "PrivateUse1")
    _library[0].impl("_copy_from", _copy_from, "PrivateUse1")
    # Autocast is taken, and changes nothing.
    _library.append(torch.library.Library("_", "IMPL", "AutocastPrivateUse1"))
    _library[1].fallback(torch.library.fallthrough_kernel)
    torch.serialization.add_safe_globals([_unpickled])


def _kernel(func: Any) -> Callable[..., Any]:
    def made(*args: Any, **kwargs: Any) -> Any:
        return _run(func, args, kwargs | {"device": torch.device(NAME, 0)})

    return made


def _copy_from(source: Tensor, target: Tensor, _non_blocking: bool = False) -> Tensor:
    _run(torch.ops.aten.copy_.default, (target, source), {})
    return target


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute an operation on the CPU, if CUDA would compute it."""
    name = func.name().partition(".")[0]
    # An operation takes values and lists of them, no deeper.
    values = (*args, *kwargs.values())
    leaves = [x for v in values for x in (v if isinstance(v, list | tuple) else (v,))]
    _refuse(func, name, args, leaves)
    given = {id(_raw(leaf)): leaf for leaf in leaves if isinstance(leaf, Tensor)}
    plain_args = [_raw(value) for value in args]
    plain = {key: _raw(value) for key, value in kwargs.items()}
    to_cpu = False
    if plain.get("device") is not None:
        to_cpu = torch.device(plain["device"]).type == "cpu"
        plain["device"] = torch.device("cpu")
    tags = func.tags
    if torch.Tag.nondeterministic_seeded in tags:
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(_MODULE.stream.get_state())
            out = func(*plain_args, **plain)
            _MODULE.stream.set_state(torch.get_rng_state())
    else:
        out = func(*plain_args, **plain)
    if torch.Tag.inplace_view in tags:  # the wrapper gets the new shape too
        with no_dispatch():
            func(*args, **kwargs)
    to_cpu = to_cpu or (name == "aten::copy_" and not isinstance(args[0], StrictTensor))
    if to_cpu or torch.Tag.data_dependent_output in tags:
        _note("reads", name)
    elif name in _INDEXING:
        if any(map(_is_mask, args[1])):
            _note("waits", name)
    elif torch.Tag.dynamic_output_shape in tags:
        _note("waits", name)

    return _wrapped(out, to_cpu, given, name)


def _wrapped(value: Any, to_cpu: bool, given: dict[int, Tensor], name: str) -> Any:
    """A result as the caller gets it: an argument that was written to is the one it gave.

    (No function inside :func:`_run`: calling itself, it would keep the arguments alive.)
    """
    if isinstance(value, list | tuple):
        return type(value)(_wrapped(part, to_cpu, given, name) for part in value)
    if not isinstance(value, Tensor):
        return value
    mine = given.get(id(value))
    if mine is None:
        return value if to_cpu else StrictTensor(value)
    if mine.shape != value.shape:
        raise NotImplementedError(f"{name} resizes its output, which {NAME} cannot follow")
    return mine


def _refuse(func: Any, name: str, args: Any, leaves: list[Any]) -> None:
    """Raise what CUDA raises for arguments that lie elsewhere."""
    if any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{name}: Expected a '{NAME}' device type for generator but found 'cpu'")
    elsewhere = [
        leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, StrictTensor)
    ]
    if not elsewhere or name in _COPIES:
        return
    allowed: Sequence[Any] = ()
    if name in _INDEXING and isinstance(args[0], StrictTensor):
        allowed = args[1]
    numbers = torch.Tag.pointwise in func.tags or name.startswith((*_TAKE_NUMBERS, *_INDEXING))
    written = args[0] if args and func._schema.is_mutable else None
    for tensor in elsewhere:
        if any(tensor is index for index in allowed):
            continue
        if tensor.dim() or not numbers or tensor is written:
            raise RuntimeError(
                f"{name}: Expected all tensors to be on the same device, but found {NAME}:0 and a "
                f"tensor of shape {tuple(tensor.shape)} on cpu"
            )


def _raw(value: Any) -> Any:
    if isinstance(value, StrictTensor):
        return value.raw
    return [_raw(part) for part in value] if isinstance(value, list | tuple) else value


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _note(kind: str, name: str) -> None:
    for record in _records:
        getattr(record, kind).append(name.removeprefix("aten::"))


def _unpickled(raw: Tensor, is_parameter: bool, requires_grad: bool) -> Tensor:
    made = StrictTensor(raw)
    return nn.Parameter(made, requires_grad) if is_parameter else made.requires_grad_(requires_grad)
