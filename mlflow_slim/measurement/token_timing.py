"""When each token of an answer comes: time to the first token, time per further token, and their spread.

All arms write the same number of tokens to the same prompt, in turns, in a fresh random order each round; ratios are
taken within rounds, as `timing` does for whole requests.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..errors import MeasurementError
from .garbage import no_garbage_collection
from .stats import Interval, quantile_interval, ratio_interval

__all__ = ["FEWEST_ROUNDS", "TokenTimings", "at_once", "time_together", "time_tokens", "timed"]

FEWEST_ROUNDS, MOST_ROUNDS = 6, 30
Floats = npt.NDArray[np.float64]
_Taken = TypeVar("_Taken")


@dataclass(frozen=True)
class TokenTimings:
    """When each token came.

    Attributes:
        stamps_s: Seconds from the start of a request until each token, by arm ``(rounds, tokens)``; the baseline first.
    """

    stamps_s: Mapping[str, Floats]

    @property
    def rounds(self) -> int:
        """Requests of each arm."""
        return len(next(iter(self.stamps_s.values())))

    @property
    def tokens(self) -> int:
        """Tokens of each answer."""
        return int(next(iter(self.stamps_s.values())).shape[1])

    def first_s(self, arm: str) -> Floats:
        """Seconds to the first token, ``(rounds,)``."""
        return self.stamps_s[arm][:, 0]

    def per_token_s(self, arm: str) -> Floats:
        """Seconds a token after the first, mean of each request, ``(rounds,)``."""
        stamps = self.stamps_s[arm]
        return np.asarray((stamps[:, -1] - stamps[:, 0]) / (stamps.shape[1] - 1))

    def figures(self, arm: str) -> dict[str, Interval]:
        """Latencies of first and further tokens, and tokens a second: of whole requests, and after the first one.

        TTFT, TPOT and ITL are time to first token, time per output token, and inter-token latency, as NVIDIA's
        GenAI-Perf defines them.
        """
        gaps_ms = np.diff(self.stamps_s[arm], axis=1) * 1e3
        per_token = quantile_interval(self.per_token_s(arm)[:, None] * 1e3, 0.5)
        whole = quantile_interval(self.stamps_s[arm][:, -1:] * 1e3, 0.5)
        return {
            "latency/ttft_p50_ms": quantile_interval(self.first_s(arm)[:, None] * 1e3, 0.5),
            "latency/tpot_p50_ms": per_token,
            "latency/itl_p50_ms": quantile_interval(gaps_ms, 0.5),
            "latency/itl_p99_ms": quantile_interval(gaps_ms, 0.99),
            "throughput/decode_tokens_per_s": _rate(per_token, 1),
            "throughput/tokens_per_s": _rate(whole, self.tokens),
            "throughput/samples_per_s": _rate(whole, 1),
        }

    def speedups(self, arm: str) -> dict[str, Interval]:
        """How many times sooner the first token, and faster each further one, than the baseline's; by round."""
        base = next(iter(self.stamps_s))
        return {
            "speedup/first_token": ratio_interval(self.first_s(base), self.first_s(arm)),
            "speedup/decode": ratio_interval(self.per_token_s(base), self.per_token_s(arm)),
        }


def at_once(request: Callable[[], object], count: int) -> Callable[[], float]:
    """A call that makes so many requests in threads of their own, and gives the seconds until the last is answered."""

    def call() -> float:
        with ThreadPoolExecutor(count) as pool:
            start = time.perf_counter()
            for one in [pool.submit(request) for _ in range(count)]:
                one.result()
            return time.perf_counter() - start

    return call


def timed(request: Callable[[], object]) -> Callable[[], float]:
    """A call that makes the request and gives the seconds until it is answered."""

    def call() -> float:
        start = time.perf_counter()
        request()
        return time.perf_counter() - start

    return call


def time_together(arms: Mapping[str, Callable[[], float]], *, budget_s: float, seed: int = 0) -> dict[str, Floats]:
    """Seconds of every call of each arm, in turns, ``(rounds,)`` each.

    Args:
        arms: By name; each gives the seconds that it took.
        budget_s: Wall seconds for it all; the fewest rounds are made even beyond it.
        seed: Decides the order in each round.
    """
    found = _in_turns(arms, budget_s=budget_s, seed=seed, clock=time.perf_counter)
    return {name: np.array(seconds) for name, seconds in found.items()}


def _in_turns(
    arms: Mapping[str, Callable[[], _Taken]], *, budget_s: float, seed: int, clock: Callable[[], float]
) -> dict[str, list[_Taken]]:
    """What every call of each arm gave, after one of each that doesn't count; in a fresh random order each round."""
    order, begin = random.Random(seed), clock()
    found: dict[str, list[_Taken]] = {name: [] for name in arms}
    with no_garbage_collection():
        for call in arms.values():
            call()
        start = clock()
        for rounds in range(MOST_ROUNDS):
            if rounds >= FEWEST_ROUNDS and clock() - begin + (clock() - start) / rounds > budget_s:
                break
            for name in order.sample(list(arms), len(arms)):
                found[name].append(arms[name]())
    return found


def _rate(milliseconds: Interval, count: int) -> Interval:
    """So many in each of these times, a second."""
    each = 1e3 * count
    return Interval(
        each / milliseconds.value,
        each / milliseconds.hi,
        each / milliseconds.lo,
        milliseconds.n,
        milliseconds.confidence,
    )


def time_tokens(
    arms: Mapping[str, Callable[[], Floats]],
    *,
    budget_s: float,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> TokenTimings:
    """Stamps of all arms, in turns.

    Args:
        arms: By name, the baseline first; each writes one answer and gives the seconds until each token.
        budget_s: Wall seconds for it all; the fewest rounds are made even beyond it.
        seed: Decides the order in each round.
        clock: Wall seconds.

    Raises:
        MeasurementError: The answers have fewer than two tokens, or the arms write different numbers of them.
    """
    found = _in_turns(arms, budget_s=budget_s, seed=seed, clock=clock)
    lengths = {len(stamps) for runs in found.values() for stamps in runs}
    if len(lengths) != 1 or min(lengths) < 2:
        raise MeasurementError(
            f"Answers of {sorted(lengths)} tokens were timed; all must have the same number, 2 or more. "
            "Raise generate.max_new_tokens."
        )
    return TokenTimings({name: np.stack(runs) for name, runs in found.items()})
