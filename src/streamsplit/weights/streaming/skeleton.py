"""A transformers model without its weights: the real modules and buffers, no parameter that takes memory."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from streamsplit.errors import ManifestError, MissingExtraError


def transformers_module() -> Any:
    """The package transformers; raises MissingExtraError."""
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("streaming a transformer model", "weights", str(error)) from error
    return transformers


def model_class(architecture: str) -> Any:
    """The class of transformers by name; raises ManifestError for anything that is not one of its models."""
    transformers = transformers_module()
    found = getattr(transformers, architecture, None)
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise ManifestError(
            f"got architecture '{architecture}', expected a model class of transformers {transformers.__version__}"
        )
    return found


def build_config(model_type: str, values: Mapping[str, Any]) -> Any:
    """The configuration object from its plain values; raises ManifestError."""
    transformers = transformers_module()
    try:
        kind = transformers.CONFIG_MAPPING[model_type]
    except KeyError:
        raise ManifestError(
            f"got model type '{model_type}', which transformers {transformers.__version__} does not know"
        ) from None
    try:
        return kind.from_dict(dict(values))
    except Exception as error:  # whatever a config class makes of values it was not made for
        raise ManifestError(f"the configuration is not one of a '{model_type}' ({error})") from None


def build_skeleton(architecture: str, config: Any) -> nn.Module:
    """The model in evaluation mode, every parameter on the meta device, buffers computed; raises ManifestError."""
    with _meta_parameters():
        with contextlib.suppress(ManifestError), _EmptyOnMeta():
            model = _built(architecture, copy.deepcopy(config))
            if all(buffer.device.type != "meta" for buffer in model.buffers()):
                return model
        return _built(architecture, config)  # a buffer begins as uninitialised memory, or such memory is computed with


def build_shapes(architecture: str, config: Any, *, most_tensors: int) -> nn.Module:
    """The same with its buffers on the meta device, too: shapes that take no memory, whatever the configuration says.

    Raises ManifestError where far more tensors are made than `most_tensors`.
    """
    with torch.device("meta"), _meta_parameters(_SPARE_TENSORS + 4 * most_tensors):
        return _built(architecture, config)


def _built(architecture: str, config: Any) -> nn.Module:
    kind = model_class(architecture)
    try:
        model: Any = kind(config)
        model.tie_weights()
    except Exception as error:  # a configuration that this architecture does not take
        raise ManifestError(f"'{architecture}' cannot be built from this configuration ({error})") from None
    built: nn.Module = model.eval()
    return built


def shared_names(model: nn.Module) -> dict[str, list[str]]:
    """First name of every parameter -> all of its names: more than one where weights are tied."""
    found: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), []).append(name)
    return {names[0]: names for names in found.values()}


class _EmptyOnMeta(TorchFunctionMode):
    """Uninitialised tensors, as parameters begin, are made on the meta device at once and never filled, for speed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.device.type == "meta":
                return tensor
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


_SPARE_TENSORS = 64  # modules make some twice


@dataclass
class _Building:
    left: int | None  # parameters that may be registered; None: any number


_building: ContextVar[_Building | None] = ContextVar(
    "a skeleton is being built", default=None
)  # each thread has its own


@contextlib.contextmanager
def _meta_parameters(most: int | None = None) -> Iterator[None]:
    """Parameters go to the meta device as modules register them, at most so many; buffers, which are computed, stay.

    Building under torch.device('meta') would lose the buffers that no checkpoint holds, such as rotary frequencies.
    Initialising what is on the meta device does nothing, so nothing has to be switched off for that, which transformers
    does for all threads at once.
    """
    token = _building.set(_Building(most))
    try:
        with torch.no_grad():
            yield
    finally:
        _building.reset(token)


def _registered(module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
    """torch's own hook on every parameter of every module: leaves those alone that are not built here."""
    building = _building.get()
    if building is None or parameter is None:
        return None
    if building.left is not None:
        building.left -= 1
        if building.left < 0:
            raise ManifestError("it makes far more tensors than the manifest names")
    if parameter.device.type == "meta":
        return None
    return nn.Parameter(parameter.to("meta"), requires_grad=False)


register_module_parameter_registration_hook(_registered)  # type: ignore[arg-type]  # its stub knows no replacement
