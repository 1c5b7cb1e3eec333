"""What a stored tensor is to its model, told from names and shapes alone.

The offline counterpart of ``blocks``: a checkpoint has no modules, so blocks, embeddings,
norms and heads are known by how people name them, and by the shapes beside them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import nn

from sparsitywatch.weights.blocks import ATTENTION
from sparsitywatch.weights.entries import Entry

__all__ = ["Decider", "Layout"]

#: Name, parameter and all names of one storage, to whether it counts and why.
Decider = Callable[[str, nn.Parameter, Sequence[str]], tuple[bool, str]]

_LISTS = re.compile(r"^(blocks?|layers?|h|resblocks)$", re.IGNORECASE)
_ATTENTION_LIST = re.compile(r"attentions?$|attns?$", re.IGNORECASE)
_STATE_SPACE = re.compile(r"^(mamba|ssm|time_mix|rwkv)", re.IGNORECASE)
_NORM = re.compile(r"norm|^(ln|bn|gn)(_|\d|$)|_(ln|bn)$", re.IGNORECASE)
_EMBEDDING = re.compile(
    r"(^|_)(embeddings?|embeds?|emb|embs)$|^embed_(tokens|positions?|in)$|^(wte|wpe|tte|shared)$"
    r"|^tok_embeddings$|^relative_attention_bias$",
    re.IGNORECASE,
)
_BUFFER = re.compile(
    r"^(running_mean|running_var|num_batches_tracked|position_ids|token_type_ids|inv_freq"
    r"|(cos|sin)_cached|masked_bias|relative_position_index|attn_mask)$"
)
_ROUTER = re.compile(r"^(gate|router)$", re.IGNORECASE)
_HEAD = re.compile(
    r"^(lm_head|heads?|head_\w+|classifier|fc|fc_out|linear|output|out|logits|score|proj_out"
    r"|embed_out|decoder|predictor|qa_outputs)$",
    re.IGNORECASE,
)
#: Weights of matrix products: of a linear or convolution layer, of packed attention.
_LINEAR = re.compile(r"^(weight|in_proj_weight|[qkv]_proj_weight)$")


@dataclass(frozen=True)
class Layout:
    """The parts of a model as its tensors' names tell them.

    Args:
        entries: every tensor of the model.
    """

    entries: Sequence[Entry]
    _shapes: dict[str, tuple[int, ...]] = field(init=False, repr=False)
    _blocks: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        # frozen: what is derived is set once, here
        set_once = object.__setattr__
        set_once(self, "_shapes", {entry.name: entry.shape for entry in self.entries})
        set_once(self, "_blocks", self._find_blocks())

    def decider(self, preset: str) -> Decider:
        """Decides as a preset says, by name."""
        by_name = {entry.name: entry for entry in self.entries}
        output = None if self.has_blocks else self.output_layer()

        def decide(name: str, _: nn.Parameter, names: Sequence[str]) -> tuple[bool, str]:
            entry = by_name[name]
            kinds = [self.kind(by_name[alias]) for alias in names]
            if preset == "matrices":
                counts = (
                    len(entry.shape) >= 2
                    and entry.dtype.is_floating_point
                    and "buffer" not in kinds
                )
                return counts, "two or more dimensions" if counts else kinds[0]
            out = next((kind for kind in kinds if kind not in ("linear", "packed")), None)
            if out is not None:
                return False, out  # also a head that is tied to an embedding
            if preset == "layers":
                return True, "weight of a layer"
            if self.has_blocks and not any(self.in_block(alias) for alias in names):
                return False, "outside the blocks (head, pooler or input layer)"
            if output is not None and any(n.rpartition(".")[0] == output for n in names):
                return False, "output layer"
            if preset == "paper" and not self._is_nn_linear(entry):
                return False, "not an nn.Linear"
            return True, "weight inside a block" if self.has_blocks else "weight of a layer"

        return decide

    @property
    def has_blocks(self) -> bool:
        """Whether there are transformer blocks."""
        return bool(self._blocks)

    def in_block(self, name: str) -> bool:
        """Whether a tensor lies inside a block."""
        return name.startswith(self._blocks)

    def kind(self, entry: Entry) -> str:
        """Either "linear" or "packed" for weights that may count, else why they do not."""
        module, _, attribute = entry.name.rpartition(".")
        own = module.rpartition(".")[2]
        dims = len(entry.shape)
        if dims == 2 and attribute == "weight" and self._is_embedding(module, own):
            return "embedding"
        if _BUFFER.match(attribute):
            return "buffer"
        if dims < 2:
            if _NORM.search(own):
                return "norm"
            is_float = entry.dtype.is_floating_point
            what = "bias" if "bias" in attribute else "fewer than two dimensions"
            return what if is_float else f"dtype {entry.dtype}"
        if not entry.dtype.is_floating_point:
            return f"dtype {entry.dtype}"
        if _LINEAR.match(attribute):
            if _ROUTER.match(own) and self._has_experts(module):
                return "router of a mixture of experts"
            return "linear"
        if dims >= 3 and "bias" not in attribute and self.in_block(entry.name):
            return "packed"
        return f"parameter {attribute!r}, not of a linear layer"

    def output_layer(self) -> str | None:
        """Path of the layer that makes the model's output: known by its name, else the last."""
        modules = [
            entry.name.rpartition(".")[0] for entry in self.entries if self.kind(entry) == "linear"
        ]
        named = []
        for path in modules:
            parts = path.split(".")
            number = int(parts.pop()) if parts[-1].isdigit() else 0  # a head may be a Sequential
            if parts and _HEAD.match(parts[-1]):
                named.append((len(parts), -number, path))
        if named:
            return min(named)[2]
        return modules[-1] if modules else None

    def _is_nn_linear(self, entry: Entry) -> bool:
        is_matrix = len(entry.shape) == 2 and entry.name.endswith("weight")
        is_packed_attention = entry.name.endswith("_proj_weight")
        return is_matrix and not is_packed_attention and not self._is_transposed(entry)

    def _is_transposed(self, entry: Entry) -> bool:
        """Whether a matrix is stored as transformers' Conv1D does, inputs first.

        The bias tells, which has one element per output; for a square matrix, that of
        another of the same name.
        """
        leaf = ".".join(entry.name.split(".")[-2:])
        for name, shape in self._shapes.items():
            if ".".join(name.split(".")[-2:]) == leaf and len(shape) == 2 and shape[0] != shape[1]:
                bias = self._shapes.get(f"{name.rpartition('.')[0]}.bias")
                return bias == (shape[1],)
        return False

    def _is_embedding(self, module: str, own: str) -> bool:
        # no embedding has a bias: what has one is a projection
        return bool(_EMBEDDING.search(own)) and f"{module}.bias" not in self._shapes

    def _has_experts(self, module: str) -> bool:
        parent = module.rpartition(".")[0]
        return any(
            name.startswith((f"{parent}.experts.", f"{parent}.experts_")) for name in self._shapes
        )

    def _find_blocks(self) -> tuple[str, ...]:
        """Prefixes of the members of lists that hold attention, the outermost ones."""
        members: dict[str, list[str]] = {}
        for entry in self.entries:
            parts = entry.name.split(".")
            for at, part in enumerate(parts[:-1]):
                if part.isdigit():
                    path = ".".join(parts[: at + 1])
                    members.setdefault(path, []).append(".".join(parts[at + 1 :]))
        blocks: list[str] = []
        for path in sorted(members, key=lambda path: path.count(".")):
            is_inside = path.startswith(tuple(blocks))
            if not is_inside and self._is_block(path, members[path]):
                blocks.append(f"{path}.")
        return tuple(blocks)

    def _is_block(self, path: str, inside: Sequence[str]) -> bool:
        parts = path.split(".")
        own = parts[-2] if len(parts) > 1 else ""
        if _ATTENTION_LIST.search(own):
            return False  # a list of attentions lies inside a block or is none
        matrices = [
            name for name in inside
            if "." in name and _LINEAR.match(name.rpartition(".")[2])
            and len(self._shapes[f"{path}.{name}"]) >= 2
        ]  # fmt: skip
        if not matrices:
            return False
        modules = {part for name in inside for part in name.split(".")[:-1]}
        if any(ATTENTION.search(part) or _STATE_SPACE.match(part) for part in modules):
            return True
        flat = [name for name in matrices if len(self._shapes[f"{path}.{name}"]) == 2]
        return bool(_LISTS.match(own)) and len(flat) >= 2
