"""What the names and shapes of tensors say: what the user called them, and a model's parts.

Where the blocks are is read off names alone, in whatever order they come: a file does not keep that
of the model. Where there is a model, a module's class says what kind of layer its tensors belong to
and which way round they lie. Else it is how people name such layers, and the shapes beside it. The
layers that make the output are seen in a forward where there is one, else told from widths.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn

#: Path components that wrappers insert; they may stand anywhere in a name.
_WRAPPER_COMPONENTS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module"}
)

_LEADING = re.compile(r"(?:module\.)*")


@lru_cache(maxsize=1 << 14)  # of the same names at every snapshot
def clean_name(name: str) -> str:
    """A parameter name without the components that wrappers insert."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPER_COMPONENTS)


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Stored names of one model's tensors to the names that its user wrote."""
    # module., which data-parallel wrappers put in front, goes where every name has it: a model may
    # have a part of that name
    found = {name: clean_name(name) for name in names}
    # at once: names come from files, and may consist of it
    shared = min((_LEADING.match(name).end() for name in found.values()), default=0)  # type: ignore[union-attr]
    return {raw: name[shared:] for raw, name in found.items()}


@lru_cache(maxsize=1 << 12)
def natural_order(name: str) -> tuple[tuple[tuple[int, str], ...], str]:
    """What to sort names by, so that numbers inside them count by their value."""
    parts = []
    for part in re.split(r"([0-9]+)", name):
        number = part.lstrip("0")
        # by length, then by digits: names come from files, and may hold numbers of any length
        parts.append((len(number), number) if part.isdecimal() else (-1, part))
    return tuple(parts), name


def unwrap_model(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile, DDP and DataParallel wrappers."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile's
            model = inner
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One tensor of a model or a checkpoint, without its data."""

    name: str  # without the prefixes of wrappers
    shape: tuple[int, ...]
    dtype: torch.dtype
    #: Equal for tied weights; None where the format keeps every tensor by itself.
    storage: Hashable = None
    #: What it is in the file, where ``dtype`` does not say it: "F4", "int8 codes".
    stored_as: str = ""
    #: Why its values cannot be read, as "it is sparse". It is in scope by its name and shape all
    #: the same, and refused only there.
    problem: str = ""

    @property
    def may_be_weights(self) -> bool:
        """Whether its values are weights, or would be if they could be read."""
        return self.dtype.is_floating_point or bool(self.problem)

    @property
    def num_weights(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """Size of its elements, in bytes."""
        return self.num_weights * self.dtype.itemsize

    def placeholder(self) -> nn.Parameter:
        """A parameter of this shape and dtype without data, on the meta device."""
        dtype = torch.float32 if self.problem else self.dtype
        data = torch.empty(self.shape, dtype=dtype, device="meta")
        # as a parameter in training has it; a file does not tell which were frozen
        return nn.Parameter(data, requires_grad=dtype.is_floating_point)


#: All names of one storage, the first one leading, to whether it counts and why.
Decider = Callable[[Sequence[str]], tuple[bool, str]]

#: Why a parameter is out that is not the weight itself, such as that of a weight norm.
REPARAMETRIZED = "reparametrized: the layer's weight is computed from this"

_LISTS = re.compile(r"^(blocks?|layers?|h|resblocks)$", re.IGNORECASE)
#: A member of a list that is spelled out, such as torchvision's "encoder_layer_0".
_NUMBERED = re.compile(r"^(?:.*_)?(?:block|layer)s?_?\d+$", re.IGNORECASE)
_ATTENTION_LIST = re.compile(r"attentions?$|attns?$", re.IGNORECASE)
#: What a block has inside: attention, whatever it is called itself, or a state space.
_ATTENTION = re.compile(
    r"attention|attn|mixer|^(mamba|ssm|time_mix|rwkv)"
    r"|^(wq|to_q|q_proj|query|query_proj|qkv|to_qkv|qkv_proj|wqkv|query_key_value)$",
    re.IGNORECASE,
)
_NORM = re.compile(r"norm|^(ln|bn|gn)(_|\d|$)|_(ln|bn)$", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"(^|_)(embeddings?|embeds?|emb|embs)$|^embed_(tokens|positions?|in)$|^(wte|wpe|tte|shared)$"
    r"|^tok_embeddings$|^relative_attention_bias$",
    re.IGNORECASE,
)
_BUFFER = re.compile(
    r"^(running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq"
    r"|(cos|sin)_cached|masked_bias|relative_(position_index|coords_table)|attn_mask"
    r"|(weight|bias)_mask|final_logits_bias)$"
)
_EXPERTS = re.compile(r"(?:^|\.)experts(?:_[^.]*)?(?=\.)")
_ROUTER = re.compile(r"^(gate|router)$", re.IGNORECASE)
_HEAD = re.compile(
    r"^(lm_head|heads?|head_\w+|\w+_head|classifier|fc|fc_out|linear|output|out|logits|score"
    r"|proj_out|embed_out|decoder|predictor|qa_outputs)$",
    re.IGNORECASE,
)
#: Weights of matrix products: of a linear or convolution layer, of packed attention.
_LINEAR = re.compile(r"^(weight|in_proj_weight|[qkv]_proj_weight)$")
#: The same of recurrent layers and cells, as torch names them: from the input, the state, back.
_RECURRENT = re.compile(r"^weight_(ih|hh|hr)(_l\d+)?(_reverse)?$")
_FROM_INPUT = ("weight_ih", "weight_ih_l0")
#: How the older weight norm, spectral norm and pruning masks name what they compute weights from.
_REPARAMETRIZED = re.compile(r"^(\w*weight(?:_[ih][hr]\w*?)?)_(?:g|v|orig)$")
#: Linear layers with the inputs first, known by name so that transformers need not be imported.
_INPUTS_FIRST = ("Conv1D", "Conv1DCompat")
_MATRICES = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)
#: Which layer feeds which is not worked out between more different shapes than this.
_MOST_SHAPES = 500
#: Names come from files and may have any length; no model is nested deeper.
_DEEPEST = 64


@dataclass(frozen=True)
class Place:
    """Where a tensor lives: its module, and the attribute that the module uses."""

    module: str
    attribute: str
    is_raw: bool = False  # what is stored is not that attribute but what it is computed from
    is_original: bool = True  # nor is it the state of that computation

    @classmethod
    @lru_cache(maxsize=1 << 14)  # of the same names at every snapshot
    def of(cls, name: str) -> Place:
        """Told from the tensor's name."""
        module, parametrized, rest = name.partition(".parametrizations.")
        if parametrized:
            attribute, _, what = rest.partition(".")
            return cls(module, attribute, is_raw=True, is_original=what.startswith("original"))
        module, _, attribute = name.rpartition(".")
        if older := _REPARAMETRIZED.match(attribute):
            return cls(module, older[1], is_raw=True)
        return cls(module, attribute)

    @property
    def own(self) -> str:
        """The module's own name."""
        return self.module.rpartition(".")[2]


@dataclass(frozen=True)
class _Width:
    """What a layer takes and gives: features or channels, and whether it is a convolution."""

    inputs: int
    outputs: int
    is_convolution: bool

    def takes(self, other: _Width) -> bool:
        """Whether the output of another layer may be the input of this one."""
        if self.inputs == other.outputs:
            return True
        if self.is_convolution:  # in groups it has as many times fewer inputs in its weight
            is_as_wide = self.outputs == other.outputs  # which those in groups mostly are
            return is_as_wide and self.inputs > 0 and self.outputs % self.inputs == 0
        # what comes out of a convolution is flattened
        return other.is_convolution and other.outputs > 1 and self.inputs % other.outputs == 0


class Layout:
    """The parts of a model: where its blocks are, and what each tensor belongs to."""

    def __init__(
        self,
        entries: Sequence[Entry],
        modules: Mapping[str, type[nn.Module]] | None = None,
        outputs: Collection[str] = (),
    ) -> None:
        self.modules = modules  # the class of each, by path; None where there is no model
        self._outputs = outputs  # paths of the layers that were seen to make the output
        self._entries = {entry.name: entry for entry in entries}
        self._places = {entry.name: Place.of(entry.name) for entry in entries}
        #: The bias beside each tensor: a layer's has an element for each of its outputs.
        self._biases = {name: self._bias(place.module) for name, place in self._places.items()}
        self._blocks = self._find_blocks()
        #: Paths of the modules that hold experts beside a router.
        self._mixtures = {
            entry.name[: experts.start()]
            for entry in entries
            for experts in _EXPERTS.finditer(entry.name)
        }
        self._transposed = {
            _leaf(name)
            for name, entry in self._entries.items()
            if len(entry.shape) == 2
            and entry.shape[0] != entry.shape[1]
            and self._bias(name.rpartition(".")[0]) == entry.shape[1:]
        }
        self.kinds = {entry.name: self._kind(entry) for entry in entries}

    def _bias(self, module: str) -> tuple[int, ...] | None:
        bias = self._entries.get(f"{module}.bias")
        return None if bias is None else bias.shape

    def decider(self, preset: str) -> Decider:
        """Decides as a preset says."""
        in_blocks = bool(self._blocks) and preset != "layers"
        outputs, how = self._output_layers(preset)

        def decide(names: Sequence[str]) -> tuple[bool, str]:
            entries = [self._entries[name] for name in names]
            kinds = [self.kinds[name] for name in names]
            if preset == "matrices":
                is_weight = entries[0].may_be_weights or kinds[0] in _MAY_COUNT
                counts = len(entries[0].shape) >= 2 and is_weight and "buffer" not in kinds
                return counts, "two or more dimensions" if counts else kinds[0]
            out = next((kind for kind in kinds if kind not in _MAY_COUNT), None)
            if out is not None:
                return False, out  # also a head that is tied to an embedding
            if in_blocks and not any(name.startswith(self._blocks) for name in names):
                return False, "outside the blocks (head, pooler or input layer)"
            if any(f"{self._places[name].module}.".startswith(outputs) for name in names):
                return False, f"output layer, {how}"
            if preset == "paper" and not any(map(self._is_nn_linear, entries)):
                return False, "not an nn.Linear"
            if "reparametrized" in kinds:
                return False, REPARAMETRIZED
            # what has a bias, or is not called "weight", can be nothing else
            is_certain = self.modules is not None or any(
                self._biases[name] is not None or self._places[name].attribute != "weight"
                for name in names
            )
            where = "inside a block" if in_blocks else "of a layer"
            return True, f"weight {where}{'' if is_certain else ', by its name'}"

        return decide

    def _kind(self, entry: Entry) -> str:
        """One of ``_MAY_COUNT`` for weights that may count, else why they do not."""
        place, dims = self._places[entry.name], len(entry.shape)
        layer = self._layer_by_name(entry) if self.modules is None else self._layer(entry)
        if layer in ("embedding", "norm", "buffer"):
            return layer
        # the codes of a quantised layer are weights: it is said what becomes of them
        if not (entry.may_be_weights or (layer == "linear" and self.modules)):
            return f"dtype {entry.dtype}"
        if dims < 2:
            return "bias" if "bias" in place.attribute else "fewer than two dimensions"
        if layer == "linear":
            if _ROUTER.match(place.own) and place.module.rpartition(".")[0] in self._mixtures:
                return "router of a mixture of experts"
            return "reparametrized" if place.is_raw else "linear"
        is_stack = dims >= 3 and _is_spread(entry.shape) and "bias" not in place.attribute
        if is_stack and entry.name.startswith(self._blocks):
            return "packed"  # experts of a mixture kept as one tensor
        return layer

    def _layer(self, entry: Entry) -> str:
        """What a tensor belongs to: "linear", "embedding", "norm", "buffer", or else in words."""
        place = self._places[entry.name]
        kind = (self.modules or {})[place.module]
        if issubclass(kind, nn.Embedding | nn.EmbeddingBag):
            return "embedding"
        if "norm" in kind.__name__.lower():
            return "norm"
        is_matrix = _is_weight(place.attribute) or _is_spread(entry.shape)  # or a gain, say
        if is_matrix and (issubclass(kind, _MATRICES) or kind.__name__ in _INPUTS_FIRST):
            return "linear"
        return f"parameter of {kind.__name__}, not of a linear layer"

    def _layer_by_name(self, entry: Entry) -> str:
        """The same without a model."""
        place, bias = self._places[entry.name], self._biases[entry.name]
        dims = len(entry.shape)
        if _BUFFER.match(entry.name.rpartition(".")[2]):
            return "buffer"
        # no embedding has a bias: what has one is a projection
        may_be_embedding = dims == 2 and place.attribute == "weight" and bias is None
        if may_be_embedding and _EMBEDDING.search(place.own):
            return "embedding"
        # the bias of a norm has the shape of its weight, that of a layer is a row
        if _NORM.search(place.own) and (dims < 2 or bias is None or len(bias) != 1):
            return "norm"
        if dims >= 2 and bias == entry.shape:
            return "norm"
        if _is_weight(place.attribute):
            return "linear"
        return f"parameter {place.attribute!r}, not of a linear layer"

    def layers(self, preset: str) -> dict[str, Entry]:
        """The layers of which some make the output, by path, with their largest weights."""
        largest: dict[str, Entry] = {}
        if self._blocks or preset not in ("blocks", "paper"):
            return largest  # all layers around blocks are out
        for name, entry in self._entries.items():
            place = self._places[name]
            is_inner = _RECURRENT.match(place.attribute) and place.attribute not in _FROM_INPUT
            if self.kinds[name] in ("linear", "reparametrized") and not is_inner:
                other = largest.setdefault(place.module, entry)
                largest[place.module] = max(other, entry, key=lambda one: one.num_weights)
        return largest

    def _output_layers(self, preset: str) -> tuple[tuple[str, ...], str]:
        """Prefixes of the layers that make the model's output, and how that is known."""
        layers = self.layers(preset)
        if self._outputs:
            seen = [p for p in self._outputs if p in layers and not self._is_recurrent(layers[p])]
            return tuple(f"{path}." for path in seen), "seen in a forward"
        output = self._output_layer(layers)
        by = "by widths and names" if self.modules is None else "by widths, names and order"
        return () if output is None else (f"{output}.",), by

    def _output_layer(self, layers: Mapping[str, Entry]) -> str | None:
        """Path of the layer whose output no other one takes, as far as the shapes tell, if any."""
        # of several one called a head, nearest to the root; else the last. No recurrent one: it
        # takes its own output.
        widths = {path: self._width(entry) for path, entry in layers.items()}
        taken = _taken(widths.values())
        able = [path for path, entry in layers.items() if not self._is_recurrent(entry)]
        last = [path for path in able if widths[path] not in taken] or [*widths]
        named = []
        for path in last:
            parts = path.split(".")
            number = int(parts.pop()) if parts[-1].isdecimal() else 0  # a head may be a Sequential
            if parts and _HEAD.match(parts[-1]):
                named.append((-len(parts), number, natural_order(path), path))
        if named:
            found = max(named)[3]
        elif self.modules and last:  # in the order in which they were made; a file has none
            found = last[-1]
        else:
            found = max(last, key=natural_order, default="")
        return found if found in able else None

    def _is_recurrent(self, entry: Entry) -> bool:
        return bool(_RECURRENT.match(self._places[entry.name].attribute))

    def _width(self, entry: Entry) -> _Width:
        outputs, inputs = entry.shape[:2]
        if self._has_inputs_first(entry):
            outputs, inputs = inputs, outputs
        return _Width(inputs, outputs, is_convolution=len(entry.shape) > 2)

    def _is_nn_linear(self, entry: Entry) -> bool:
        place = self._places[entry.name]
        if self.modules is not None:
            return issubclass(self.modules[place.module], nn.Linear)
        is_matrix = len(entry.shape) == 2 and place.attribute == "weight"
        return is_matrix and not self._has_inputs_first(entry)

    def _has_inputs_first(self, entry: Entry) -> bool:
        """By its class; else by its bias, of a square matrix by that of another of its name."""
        if self.modules is not None:
            kind = self.modules[self._places[entry.name].module]
            is_transposed = issubclass(kind, nn.modules.conv._ConvTransposeNd)
            return is_transposed or kind.__name__ in _INPUTS_FIRST
        if len(entry.shape) == 2:
            return _leaf(entry.name) in self._transposed
        outputs = self._biases[entry.name] or self._norm_after(self._places[entry.name].module)
        return outputs == entry.shape[1:2] != entry.shape[:1]

    def _norm_after(self, module: str) -> tuple[int, ...] | None:
        """The shape of the norm that follows a layer in a Sequential."""
        path, dot, number = module.rpartition(".")
        if not number.isdecimal():
            return None
        after = self._entries.get(f"{path}{dot}{int(number) + 1}.weight")
        return after.shape if after and len(after.shape) == 1 else None

    def _find_blocks(self) -> tuple[str, ...]:
        """Prefixes of the members of lists that hold attention, the outermost ones."""
        members: dict[str, list[str]] = {}
        for name, place in self._places.items():
            parts = place.module.split(".")[:_DEEPEST]
            for at, part in enumerate(parts):
                if part.isdigit() or _NUMBERED.match(part):
                    members.setdefault(".".join(parts[: at + 1]), []).append(name)
        blocks: list[str] = []
        for path in sorted(members, key=lambda path: path.count(".")):
            is_inside = path.startswith(tuple(blocks))
            if not is_inside and self._is_block(path, members[path]):
                blocks.append(f"{path}.")
        return tuple(blocks)

    def _is_block(self, path: str, names: Sequence[str]) -> bool:
        own, _, last = path.rpartition(".")
        own = own.rpartition(".")[2]  # of the list
        if _ATTENTION_LIST.search(own):
            return False  # a list of attentions lies inside a block or is none
        parts: set[str] = set()
        matrices = []
        for name in names:
            place, shape = self._places[name], self._entries[name].shape
            rest = place.module.removeprefix(path).strip(".")
            parts.update(rest.split("."))
            if rest and _LINEAR.match(place.attribute) and len(shape) >= 2:
                matrices.append(shape)
        if not matrices:
            return False
        if any(map(_ATTENTION.search, parts)):
            return True
        num_flat = sum(len(shape) == 2 for shape in matrices)
        return bool(_LISTS.match(own)) and last.isdigit() and num_flat >= 2


#: Kinds of a weight that may count.
_MAY_COUNT = ("linear", "packed", "reparametrized")


def _taken(widths: Iterable[_Width]) -> set[_Width]:
    """Those whose output another layer may take."""
    shapes = Counter(widths)
    if len(shapes) > _MOST_SHAPES:
        return set()
    return {
        one for one in shapes
        if any(other.takes(one) for other in shapes if other != one or shapes[one] > 1)
    }  # fmt: skip


def _is_weight(attribute: str) -> bool:
    return bool(_LINEAR.match(attribute) or _RECURRENT.match(attribute))


def _is_spread(shape: Sequence[int]) -> bool:
    """Whether a tensor is more than a row of numbers, such as one for each channel."""
    return sum(length > 1 for length in shape) > 1


def _leaf(name: str) -> str:
    return ".".join(name.split(".")[-2:])
