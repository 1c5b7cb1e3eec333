"""What is tried before anything is measured: does the proxy work, and which layers make the output.

Nothing of it disturbs the training: forwards run a copy of the model on copies of its weights.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsitywatch.errors import MeasurementError, ProxyError, TrainingChangedError
from sparsitywatch.evaluation.masked import InShards, Masks, OnCopies, undisturbed
from sparsitywatch.evaluation.model_copy import ModelCopy
from sparsitywatch.proxy.batches import Runnable, finish_despite_interrupt
from sparsitywatch.proxy.proxy import Proxy
from sparsitywatch.ranks.protocol import Ranks
from sparsitywatch.records.curve import units
from sparsitywatch.redact import logger, printable, redacted_error
from sparsitywatch.weights.layout import clean_name
from sparsitywatch.weights.scope import Scope, ScopeLike
from sparsitywatch.weights.sharded import address_of, is_sharded

T = TypeVar("T")

#: Operators that make a layer of a weight: products of matrices, convolutions.
_PRODUCT = re.compile(r"mm|mv|dot|conv|linear")


def check_proxy(proxy: Proxy, model: nn.Module, *, has_weights: bool = True) -> np.ndarray:
    """The values of a model, which is not disturbed; what could not be used is refused."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ProxyError(
                f"Expected a model whose parameters are all there, but {printable(name)!r} is "
                "made by the first forward. Run one forward before attaching."
            )
    _say_what_is_shared(model, proxy.value)

    def run(fresh: Callable[[], Runnable]) -> np.ndarray:
        every = proxy.by_batch(*fresh())
        values = proxy.examples(every)
        proxy.check_repeats(every, fresh)
        return values

    try:
        values = check_forward(model, proxy.value, run, proxy.ranks)
    except ProxyError:
        raise
    except MeasurementError as error:  # it says all there is to say
        raise ProxyError(str(error)) from error
    except Exception as error:
        raise ProxyError(
            "Expected `value(model, batch)` of the proxy to work on the model as it is, but "
            f"it raised {type(error).__name__}: {error}."
        ) from error
    _refuse_few(proxy, values)
    if has_weights and not np.isfinite(values).all():  # else values mean nothing yet
        raise ProxyError(proxy.not_finite(values))
    return values


def _refuse_few(proxy: Proxy, values: np.ndarray) -> None:
    """Refuse values of which no error can be told; warn of those that are not of examples."""
    if values.size < 2:
        raise ProxyError(
            f"Expected `value` to return at least two {units(proxy.unit)} over all batches, so "
            f"that an error can be estimated, got {values.size}."
            + ("" if values.size else " None has a label.")
            + (f" It returns one number per {proxy.unit}." if proxy.unit != "example" else "")
        )
    if proxy.unit != "example":
        logger.warning(
            "the value has one number per %s, not per example: intervals are those of %d batches. "
            "%s",
            proxy.unit,
            values.size,
            proxy.advice,
        )


def check_forward(
    model: nn.Module,
    value: Callable[..., Any],
    run: Callable[[Callable[[], Runnable]], T],
    ranks: Ranks,
) -> T:
    """What ``run`` gives, which is given what makes copies, if it leaves the training as it is."""
    parameters = dict(model.named_parameters())
    is_in_shards = any(map(is_sharded, parameters.values()))
    with undisturbed(ranks):
        if is_in_shards:
            trial: Masks = InShards(model, value, parameters)
        else:  # all are copied meanwhile, so that what is written to them is seen and does no harm
            weights = [(name, one, one.detach().clone()) for name, one in parameters.items()]
            clones = {id(one): clone for _, one, clone in weights}
            trial = OnCopies(model, value, weights, (clones, {}), renews=True)
        try:
            with contextlib.nullcontext() if is_in_shards else _original_refused(model):
                found = run(trial.dense)
        except Exception:
            trial.refuse_changed()  # which may be what made it fail
            raise
        else:
            trial.refuse_changed()
        finally:
            finish_despite_interrupt(trial.put_back)
    return found


def _say_what_is_shared(model: nn.Module, value: Callable[..., Any]) -> None:
    if any(map(is_sharded, model.parameters())):
        return
    for name, kind in ModelCopy(model, value).uncopied.items():
        logger.info("%s (%s) cannot be copied: evaluations use that of the training", name, kind)


@contextlib.contextmanager
def _original_refused(model: nn.Module) -> Iterator[None]:
    """Refuse to run modules of the model itself, which is in training mode and not masked."""
    paths = {id(module): path for path, module in model.named_modules()}
    thread = threading.get_ident()

    def refuse(module: nn.Module, _: object) -> None:
        if id(module) in paths and threading.get_ident() == thread:
            what = f"its module {paths[id(module)]!r}" if paths[id(module)] else "it"
            raise MeasurementError(
                "Expected `value(model, batch)` to run the model that it is given, which is a copy "
                f"of the watched one, but it ran {what} of the watched model. Use the argument."
            )

    handle = register_module_forward_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


# ------------------------------------------------------------------ which layers make the output


def seen_scope(decided: Scope, scope: ScopeLike, model: nn.Module, proxy: Proxy) -> Scope:
    """The scope where the layers that make the output are those that a forward shows."""
    # the same where that makes no difference: in a model with blocks, or by a scope of patterns. On
    # several ranks all of them call it, and take what the first one saw.
    if not decided.layers:
        return decided
    try:
        seen = check_forward(
            model, proxy.value, lambda fresh: _seen(fresh(), proxy, decided.layers), proxy.ranks
        )
    except TrainingChangedError:
        raise
    except Exception as error:  # noqa: BLE001 the forward of check_proxy went through
        logger.warning(
            "which layer makes the output could not be seen, and is told from the shapes of the "
            "layers: %s",
            redacted_error(error),
        )
        seen = []
    seen = proxy.ranks.of_first(seen)
    return Scope.of(model, scope, seen, decided.held) if seen else decided


def _seen(run: Runnable, proxy: Proxy, layers: Collection[str]) -> list[str]:
    """Of these layers those that make the output, in the order in which they ran."""
    flow = _Flow()
    # what a wrapper holds replaces it
    modules = {clean_name(path): one for path, one in run.module.named_modules()}
    # the outer one first: attention has a layer inside
    hooks = [hook for path in sorted(layers) for hook in flow.follow(path, modules[path])]
    hooks.append(run.module.register_forward_hook(lambda _, __, output: flow.reach(output)))

    def value(*given: Any) -> torch.Tensor:
        with flow:
            result = run.value(*given)
        flow.reach(result)
        return result

    try:
        proxy.run_once(run.module, value)
    finally:
        for hook in hooks:
            hook.remove()
    return flow.outputs()


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows what layers put out through all operators, by the memory that it lies in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._came: dict[int, frozenset[str]] = {}  # an address to the layers it comes from
        #: Addresses of weights, and of what is computed of them alone, to their layers.
        self._weights: dict[int, frozenset[str]] = {}
        self._ran: dict[str, None] = {}  # in order
        self._taken: set[str] = set()  # by another layer
        self._reached: set[str] = set()  # the output, without a layer between

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run an operator: its output comes from where its inputs come from."""
        given = frozenset(_addresses((args, kwargs)))
        used = frozenset().union(*(self._weights.get(one, ()) for one in given))
        came = self._layers_of((args, kwargs))
        output = func(*args, **(kwargs or {}))
        made = [one for one in _addresses(output) if one not in self._weights or one not in given]
        if used and given <= self._weights.keys():  # a cast of a weight, say
            self._weights.update(dict.fromkeys(made, used))
            return output
        if used and _PRODUCT.search(func.name()):  # a layer, by its weight
            came = self._passed(used, came)
        for one in made:
            self._weights.pop(one, None)
            self._came[one] = came
        return output

    def _passed(self, layers: frozenset[str], came: frozenset[str]) -> frozenset[str]:
        """Note that layers ran on what came from others; where their output comes from."""
        self._taken |= came - layers
        for path in layers:
            self._ran.pop(path, None)
            self._ran[path] = None
        return layers

    def follow(self, path: str, layer: nn.Module) -> Iterator[Any]:
        """Note what a layer takes and puts out; the hooks for it."""
        own = frozenset((path,))

        def take(_: nn.Module, args: Any, kwargs: Any) -> None:
            self._taken |= self._layers_of((args, kwargs)) - own

        def put_out(_: nn.Module, __: Any, output: Any) -> None:
            came = self._passed(own, frozenset())
            self._came.update(dict.fromkeys(_addresses(output), came))

        for address in _addresses([*layer.parameters(), *layer.buffers()]):
            self._weights[address] = self._weights.get(address, own)  # the outer one's, of several
        yield layer.register_forward_pre_hook(take, with_kwargs=True)
        yield layer.register_forward_hook(put_out)

    def reach(self, output: Any) -> None:
        """Note what has come out of the model."""
        self._reached |= self._layers_of(output)

    def outputs(self) -> list[str]:
        """Layers that reach the output and no layer takes; else the last one that reaches it."""
        # so an autoencoder's mean, which the decoder takes, is none; all heads of a model are some.
        # Where all are taken the output has been fed back.
        reached = [path for path in self._ran if path in self._reached]
        return [path for path in reached if path not in self._taken] or reached[-1:]

    def _layers_of(self, tensors: Any) -> frozenset[str]:
        return frozenset().union(*(self._came.get(one, ()) for one in _addresses(tensors)))


def _addresses(tensors: Any) -> Iterator[int]:
    """Where the tensors lie that something consists of; those without memory are left out."""
    for one in tree_leaves(tensors):
        if isinstance(one, torch.Tensor) and (address := address_of(one)) is not None:
            yield address
