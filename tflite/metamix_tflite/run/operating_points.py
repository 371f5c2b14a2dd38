"""Runs a .tflite of several operating points, switching between inferences without a reload."""

from __future__ import annotations

import dataclasses
import math
import numbers
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metamix_tflite.read.files import read_interface, read_operating_points
from metamix_tflite.run.interpreter import InterpretedSignature, interpreted_signatures
from metamix_tflite.run.latency import random_inputs
from metamix_tflite.run.runner import check_engine, require_count
from metamix_tflite.run.weight_cache import WeightCache

if TYPE_CHECKING:
    from metamix_tflite.run.compiled import Compiled


@dataclasses.dataclass(frozen=True)
class FilePoint:
    """One signature of a file.

    Attributes:
      name: the signature.
      bops: bit operations of one image, as the file declares them.
      price: of the table that the runner was given, in its unit; None without one.
      latency_us: median latency of one image; None before `measure`.
    """

    name: str
    bops: int
    price: float | None = None
    latency_us: float | None = None


class OperatingPointRunner:
    """All operating points of a file, loaded once; one of them is selected.

    The point of the most BOPs counts as the best, and is selected first. LiteRT prepares the
    weights of all points when it loads the file: `select` costs nothing, but each point takes the
    memory of a network. With engine="compiled" and a weight cache the points share the weights
    that are equal.

    Args:
      flat: bytes of `convert(model, operating_points=...)`.
      threads: CPU threads.
      prices: what an inference costs at each point, by name: energy, say.
      engine: LiteRT's "interpreter", or "compiled" for its newer CompiledModel.
      weight_cache: with "compiled", where points share packed weights: ":memory", or a folder,
        from which the next process has them too; see `Runner`.

    Raises:
      TypeError, ValueError: not such a file, a price that is missing or no number, an unknown
        engine, or a cache beside the interpreter.
      OSError: `weight_cache` is no folder, or cannot be written.
    """

    def __init__(
        self,
        flat: bytes,
        threads: int = 1,
        prices: Mapping[str, float] | None = None,
        engine: str = "interpreter",
        weight_cache: WeightCache = None,
    ):
        points = read_operating_points(flat)
        if not points:
            raise ValueError(
                "Expected a file of convert(model, operating_points=...), found one that declares "
                "no operating points."
            )
        require_count("threads", 1, threads)
        check_engine(engine, weight_cache)
        self._interfaces = {name: read_interface(flat, name) for name in points}
        self._signatures: Mapping[str, InterpretedSignature | Compiled]
        if engine == "interpreter":
            self._signatures = interpreted_signatures(flat, self._interfaces, threads)
        else:
            # Here: other versions of LiteRT, which files are replayed with, have none.
            from metamix_tflite.run.compiled import compiled_signatures

            self._signatures = compiled_signatures(flat, self._interfaces, threads, weight_cache)
        priced = {} if prices is None else _checked(prices, points)
        self._points = {
            name: FilePoint(name, points[name]["bops"], priced.get(name))
            for name in sorted(points, key=lambda name: points[name]["bops"], reverse=True)
        }
        self._selected = next(iter(self._points))
        self._shapes = [tuple(d["shape"][1:].tolist()) for d in self.input_details]

    @property
    def points(self) -> tuple[FilePoint, ...]:
        """All operating points, the best first."""
        return tuple(self._points.values())

    @property
    def selected(self) -> FilePoint:
        """The one that runs."""
        return self._points[self._selected]

    @property
    def input_details(self) -> list[dict[str, Any]]:
        """LiteRT's description of the inputs of the selected point."""
        return self._signatures[self._selected].inputs

    def measure(self, runs: int = 50, warmup: int = 5) -> dict[str, float]:
        """Times every point on one image, in turn; the one selected stays.

        Returns:
          Median latencies in microseconds by name, which `points` hold from now on.

        Raises:
          ValueError: counts below 1, or for the warm-up below 0.
        """
        require_count("runs", 1, runs)
        require_count("warmup", 0, warmup)
        arrays = random_inputs(self.input_details)
        times: dict[str, list[float]] = {name: [] for name in self._points}
        for _ in range(warmup + runs):
            for name, samples in times.items():
                start = time.perf_counter()
                self._run(name, *arrays)
                samples.append((time.perf_counter() - start) * 1e6)
        medians = {name: float(np.median(samples[warmup:])) for name, samples in times.items()}
        for name, latency in medians.items():
            self._points[name] = dataclasses.replace(self._points[name], latency_us=latency)
        return medians

    def select(
        self,
        name: str | None = None,
        *,
        latency_us: float | None = None,
        budget: float | None = None,
        prices: Mapping[str, float] | None = None,
    ) -> FilePoint:
        """Selects the best point that fits, or one by name, for the inferences that follow.

        Args:
          name: of the point.
          latency_us: the longest median latency that `measure` may have found.
          budget: the highest price of an inference.
          prices: by name, for the budget; default the runner's, and without these BOPs.

        Returns:
          The point selected.

        Raises:
          ValueError: none fits, then the one selected stays; no such name; nothing measured; not
            exactly one of `name`, `latency_us` and `budget`.
        """
        if [name, latency_us, budget].count(None) != 2:
            raise ValueError("select: expected one of a name, latency_us=... and budget=....")
        if name is not None:
            if name not in self._points:
                raise ValueError(f"select: expected one of {[*self._points]}, found {name!r}.")
            self._selected = name
            return self.selected
        if budget is None:
            self._selected = self._best("latency_us", self._latencies(), latency_us)
        else:
            self._selected = self._best("budget", self._prices(prices), budget)
        return self.selected

    def invoke(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Outputs of the selected point, for an array of images for each input.

        Raises:
          ValueError: another number of arrays, or arrays of another shape or type.
        """
        found = [tuple(np.shape(array)[1:]) for array in arrays]
        if found != self._shapes:  # LiteRT would resize the network to them
            raise ValueError(f"expected images of shapes {self._shapes}, found {found}.")
        return self._run(self._selected, *arrays)

    def predict(self, images: Any) -> Any:
        """The outputs for any number of images, one after the other; see `Runner.predict`.

        Raises:
          TypeError: no arrays of images.
          ValueError: no image, not an array for each input, or images of another shape or type.
        """
        interface = self._interfaces[self._selected]
        arrays = interface.images(images, self.input_details)
        batches = [self.invoke(*(a[i : i + 1] for a in arrays)) for i in range(len(arrays[0]))]
        return interface.structured([np.concatenate(parts) for parts in zip(*batches, strict=True)])

    def _run(self, name: str, *arrays: np.ndarray) -> list[np.ndarray]:
        return self._signatures[name].invoke(arrays)

    def _best(self, what: str, costs: Mapping[str, float], limit: Any) -> str:
        """The first point, so the best one, whose cost is within a limit."""
        if not isinstance(limit, int | float | np.number):
            raise ValueError(f"select: expected a number as {what}, found {limit!r}.")
        for name in self._points:
            if costs[name] <= limit:
                return name
        least = min(costs, key=lambda name: costs[name])
        raise ValueError(
            f"select({what}={limit!r}): no operating point fits; the least is {least!r} with "
            f"{costs[least]:.6g}."
        )

    def _latencies(self) -> dict[str, float]:
        found = {p.name: p.latency_us for p in self.points if p.latency_us is not None}
        if not found:
            raise ValueError("select(latency_us=...): nothing is measured yet, call measure().")
        return found

    def _prices(self, prices: Mapping[str, float] | None) -> Mapping[str, float]:
        if prices is not None:
            return _checked(prices, self._points)
        return {p.name: p.bops if p.price is None else p.price for p in self.points}


def _checked(prices: Mapping[str, float], points: Collection[str]) -> dict[str, float]:
    """Prices of all points.

    Raises:
      ValueError: a point without a price, or a price that is no number; names the point.
    """
    if set(prices) != set(points):
        raise ValueError(f"prices: expected one for each of {[*points]}, found {[*prices]}.")
    for name, price in prices.items():
        if not isinstance(price, numbers.Real) or not math.isfinite(price):
            raise ValueError(f"prices: expected a number for {name!r}, found {price!r}.")
    return dict(prices)
