"""A metric of torchmetrics as the value of a proxy: by example, or of sums that batches add to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from sparsitywatch.errors import MissingExtraError, ProxyError, expect

try:
    from torchmetrics import Metric
    from torchmetrics.utilities.data import dim_zero_sum
except ImportError as error:
    raise MissingExtraError("torchmetrics", "torchmetrics", "Proxy.of_metric") from error


class BatchMetric:
    """What each batch adds to a metric's states, or a number for each example, and their value."""

    advice = "More batches make them narrower."

    def __init__(self, metric: Any, higher_is_better: bool | None) -> None:
        expect(isinstance(metric, Metric), "metric", "a Metric of torchmetrics", metric)
        kinds = (vars(metric).get("multidim_average"), vars(metric).get("reduction"))
        self.is_by_example = "samplewise" in kinds or "none" in kinds
        others = [name for name, how in metric._reductions.items() if how is not dim_zero_sum]
        if (others or not metric._reductions) and not self.is_by_example:
            raise ProxyError(
                f"Expected a metric whose states are sums over examples, got "
                f"{type(metric).__name__}, whose {', '.join(map(repr, others)) or 'states'} are a "
                "list (`cat`) or another thing. Give it `thresholds=100`, if it takes them, or use "
                "`sw.Proxy` with a number for each example."
            )
        is_better = metric.higher_is_better if higher_is_better is None else higher_is_better
        is_known = isinstance(is_better, bool)
        expect(is_known, "higher_is_better", "True or False: the metric does not say it", None)
        self.higher_is_better: bool = is_better
        self._metric = copy.deepcopy(metric)
        self._metric.compute_with_cache = False
        self._metric.distributed_available_fn = bool  # no: what other ranks add, the proxy adds

    def values(self, every: Mapping[int, np.ndarray]) -> np.ndarray:
        """One number of each batch, whose mean is the metric of all."""
        # the pseudo-values of a jackknife over batches, shifted by its estimate of the bias: the
        # error of the mean of paired differences is its error. Efron and Stein 1981, Ann. Stat. 9
        sums = np.stack([every[place] for place in sorted(every)])
        total, num = sums.sum(0), len(sums)
        without = np.array([self._value_of(total - of_batch) for of_batch in sums])
        values: np.ndarray = self._value_of(total) + (num - 1) * (without.mean() - without)
        return values

    def of_batch(self, given: Any, index: int, device: torch.device) -> np.ndarray:
        """The numbers of one batch, given what ``predict`` says of it."""
        if not isinstance(given, tuple | list | Mapping):
            raise ProxyError(
                "Expected `predict(model, batch)` to return what `metric.update` takes, a tuple "
                f"(predictions, targets) or a dict, got {type(given).__name__}."
            )
        metric = self._metric.to(device)
        metric.reset()
        if isinstance(given, Mapping):
            metric.update(**given)
        else:
            metric.update(*given)
        parts = [getattr(metric, name) for name in metric._reductions]
        if self.is_by_example:
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
