"""The layer graph: which tensors of a model are a layer, an embedding fetched by rows, a head, or stay resident."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import nn

from streamsplit.errors import ManifestError
from streamsplit.weights.streaming.skeleton import shared_names

Role = Literal["resident", "rows", "layer", "head"]
STACKS: dict[str, tuple[str, ...]] = {
    "bert": ("encoder.layer",), "roberta": ("encoder.layer",), "distilbert": ("transformer.layer",),
    "gpt2": ("h",), "llama": ("layers",), "mistral": ("layers",), "qwen2": ("layers",),
    "t5": ("encoder.block", "decoder.block"),
}  # fmt: skip
"""Model type -> its lists of layers, below the base model. Other types work where there is exactly one such list."""

ROWS_OVER_BYTES = 48 << 10  # embeddings beyond this (float32) are fetched by rows
HEAD_OVER_BYTES = 4 << 20  # other modules beyond this are streamed like a layer, the rest stays resident


class Group(NamedTuple):
    """Tensors that travel together."""

    name: str
    role: Role
    tensors: tuple[str, ...]


class LayerGraph(NamedTuple):
    """Groups in the order of a forward pass, the stacks' full names, and tied names -> stored name."""

    groups: tuple[Group, ...]
    stacks: tuple[str, ...]
    tied: dict[str, str]


def register_type(model_type: str, *stacks: str) -> None:
    """Makes a model type known: the names of its lists of layers below the base model, in the order they run."""
    STACKS[model_type] = stacks


def find_stacks(model: nn.Module, model_type: str) -> tuple[str, ...]:
    """Full names of the model's lists of layers; raises ManifestError saying which types are supported."""
    lists = [name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    wanted = STACKS.get(model_type)
    if wanted is not None:
        prefix = getattr(model, "base_model_prefix", "")
        for candidate in (prefix, ""):
            names = tuple(f"{candidate}.{stack}" if candidate else stack for stack in wanted)
            if set(names) <= set(outer):
                return names
        raise ManifestError(f"got a '{model_type}' without {', '.join(wanted)}, expected one that has them")
    if len(outer) == 1:
        return (outer[0],)
    what = f"{len(outer)} lists of layers ({', '.join(outer)})" if outer else "no list of layers"
    raise ManifestError(
        f"got model type '{model_type}' with {what}, expected one of {', '.join(sorted(STACKS))}, or any with exactly "
        "one list; add a type with streamsplit.weights.streaming.graph.register_type(type, 'path.to.layers', ...)"
    )


def layer_graph(model: nn.Module, model_type: str, *, rows_over_bytes: int = ROWS_OVER_BYTES) -> LayerGraph:
    """How the model's tensors are grouped; raises ManifestError for a model whose layers cannot be told apart."""
    stacks = find_stacks(model, model_type)
    shared = shared_names(model)
    tied = {alias: first for first, names in shared.items() for alias in names[1:]}
    rows = _row_embeddings(model, shared, stacks, rows_over_bytes)
    layers: dict[str, list[str]] = {
        f"{stack}.{index}": []
        for stack in stacks
        for index in range(len(model.get_submodule(stack)))  # type: ignore[arg-type]
    }
    heads: dict[str, list[str]] = {}
    resident: list[str] = []
    sizes = {name: tensor.numel() * 4 for name, tensor in stored_tensors(model).items()}
    large = _large_modules(sizes, tied, rows, layers)
    for name in sizes:
        if name in tied or name in rows:
            continue
        layer = _layer_of(name, layers)
        owner = name.rpartition(".")[0]
        if layer is not None:
            layers[layer].append(name)
        elif owner in large:
            heads.setdefault(owner, []).append(name)
        else:
            resident.append(name)
    groups = [Group("resident", "resident", tuple(resident))] if resident else []
    groups += [Group(name, "rows", (name,)) for name in rows]
    groups += [Group(name, "layer", tuple(tensors)) for name, tensors in layers.items() if tensors]
    groups += [Group(name, "head", tuple(tensors)) for name, tensors in heads.items()]
    if not any(group.role == "layer" for group in groups):
        raise ManifestError(f"got a '{model_type}' whose layers hold no weights, expected some")
    return LayerGraph(tuple(groups), stacks, tied)


def stored_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters and those buffers that a checkpoint holds, by every name, in the order of the modules."""
    return dict(model.state_dict(keep_vars=True))


def is_plain_embedding(module: nn.Module) -> bool:
    """True where a look-up is all that the module does with its rows."""
    return isinstance(module, nn.Embedding) and type(module).forward is nn.Embedding.forward and module.max_norm is None


def _row_embeddings(
    model: nn.Module, shared: dict[str, list[str]], stacks: tuple[str, ...], over_bytes: int
) -> dict[str, None]:
    """Names of matrices that are only looked up in, or that are a head's whole matrix as well."""
    found: dict[str, None] = {}
    for first, names in shared.items():
        if any(_inside(name, stacks) for name in names):
            continue
        users = [model.get_submodule(name.rpartition(".")[0]) for name in names]
        plain = [is_plain_embedding(user) for user in users]
        heads = [isinstance(user, nn.Linear) for user in users]
        size = model.get_parameter(first).numel() * 4
        if any(plain) and all(p or h for p, h in zip(plain, heads, strict=True)) and size > over_bytes:
            found[first] = None
    return found


def _large_modules(
    sizes: dict[str, int], tied: dict[str, str], rows: dict[str, None], layers: dict[str, list[str]]
) -> set[str]:
    """Linear-like modules outside of the layers that are too large to stay."""
    total: dict[str, int] = {}
    for name, size in sizes.items():
        if name not in tied and name not in rows and _layer_of(name, layers) is None:
            owner = name.rpartition(".")[0]
            total[owner] = total.get(owner, 0) + size
    shared = {first.rpartition(".")[0] for first in tied.values()}
    return {owner for owner, size in total.items() if size > HEAD_OVER_BYTES and owner and owner not in shared}


def _layer_of(name: str, layers: dict[str, list[str]]) -> str | None:
    return next((layer for layer in layers if name.startswith(f"{layer}.")), None)


def _inside(name: str, stacks: tuple[str, ...]) -> bool:
    return any(name.startswith(f"{stack}.") for stack in stacks)
