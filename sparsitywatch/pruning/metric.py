"""A metric of torchmetrics as the value of a proxy: by example, or of sums that batches add to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsitywatch.errors import MissingExtraError, ProxyError, expect
from sparsitywatch.pruning.batches import Batch, ValueFunction, device_of, seed_generators
from sparsitywatch.pruning.proxy import Proxy

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_sum
except ImportError as error:
    raise MissingExtraError("torchmetrics", "torchmetrics", "Proxy.of_metric") from error


class MetricProxy(Proxy):
    """Keeps of each batch what it adds to a metric's states, or a number for each example."""

    advice = "More batches make them narrower."

    def __init__(self, batches: Any, predict: Any, metric: Any, **options: Any) -> None:
        expect(isinstance(metric, Metric), "metric", "a Metric of torchmetrics", metric)
        kinds = (vars(metric).get("multidim_average"), vars(metric).get("reduction"))
        self._by_example = "samplewise" in kinds or "none" in kinds
        others = [name for name, how in metric._reductions.items() if how is not dim_zero_sum]
        if (others or not metric._reductions) and not self._by_example:
            raise ProxyError(
                f"Expected a metric whose states are sums over examples, got "
                f"{type(metric).__name__}, whose {', '.join(map(repr, others)) or 'states'} are a "
                "list (`cat`) or another thing. Give it `thresholds=100`, if it takes them, or use "
                "`sw.Proxy` with a number for each example."
            )
        if options["higher_is_better"] is None:
            options["higher_is_better"] = metric.higher_is_better
        is_known = isinstance(options["higher_is_better"], bool)
        expect(is_known, "higher_is_better", "True or False: the metric does not say it", None)
        self._metric = copy.deepcopy(metric)
        self._metric.compute_with_cache = False
        self._metric.distributed_available_fn = bool  # no: what other ranks add, the proxy adds
        super().__init__(batches, predict, name=type(metric).__name__, **options)

    def examples(self, every: Mapping[int, np.ndarray]) -> np.ndarray:
        """The numbers of the examples, or one of each batch, whose mean is the metric of all."""
        # the pseudo-values of a jackknife over batches, shifted by its estimate of the bias: the
        # error of the mean of paired differences is its error. Efron and Stein 1981, Ann. Stat. 9
        if self._by_example:
            return super().examples(every)
        sums = np.stack([every[place] for place in sorted(every)])
        total, num = sums.sum(0), len(sums)
        without = np.array([self._value_of(total - of_batch) for of_batch in sums])
        self.unit, self._num_examples, self._sizes = "batch", num, [1] * num
        values: np.ndarray = self._value_of(total) + (num - 1) * (without.mean() - without)
        return values

    def _of_batch(
        self, batch: Batch, index: int, seed: int, model: nn.Module, value: ValueFunction
    ) -> np.ndarray:
        seed_generators(seed)
        given: Any = value(model, batch.on(device_of(model)))
        if not isinstance(given, tuple | list | Mapping):
            raise ProxyError(
                "Expected `predict(model, batch)` to return what `metric.update` takes, a tuple "
                f"(predictions, targets) or a dict, got {type(given).__name__}."
            )
        metric = self._metric.to(device_of(model))
        metric.reset()
        if isinstance(given, Mapping):
            metric.update(**given)
        else:
            metric.update(*given)
        parts = [getattr(metric, name) for name in metric._reductions]
        if self._by_example:
            parts = [metric.compute()]
            if not isinstance(parts[0], torch.Tensor) or parts[0].ndim != 1:
                raise ProxyError(f"Expected a number for each example, got {parts[0]} in {index}.")
        return torch.cat([part.double().reshape(-1).cpu() for part in parts]).numpy()

    def _value_of(self, sums: np.ndarray) -> float:
        """The metric whose states are these."""
        rest = torch.from_numpy(sums)
        for name in self._metric._reductions:
            like = getattr(self._metric, name)
            part, rest = rest[: like.numel()], rest[like.numel() :]
            setattr(self._metric, name, part.reshape(like.shape).to(like))
        found = self._metric.compute()
        if isinstance(found, torch.Tensor) and found.numel() == 1:
            return float(found)
        raise ProxyError(f"Expected a metric of one number, such as a macro average, got {found}.")
