"""Says before any work why a chain of steps can't be done, or not for the runtimes asked for."""

from __future__ import annotations

from collections.abc import Sequence

from .interfaces import Technique

__all__ = ["chain_faults"]


def chain_faults(steps: Sequence[Technique], backends: Sequence[str], task: str) -> list[str]:
    """One sentence for each thing that is wrong; empty when the chain makes sense."""
    faults = []
    if task == "text-generation":
        faults += [
            f"steps[{index}] {step.name!r} isn't done for language models. Leave it out."
            for index, step in enumerate(steps)
            if not getattr(step, "generates", False)
        ]
    sparse: Technique | None = None
    for index, step in enumerate(steps):
        if getattr(step, "leaves_zeros", False):
            sparse = step
        elif sparse is not None and _trains(step):
            faults.append(
                f"steps[{index}] {step.name!r} trains every weight, and the zeros of {sparse.name!r} before it would "
                f"be lost. Put {sparse.name!r} after it"
                + (", or write recovery=none." if hasattr(step, "recovery") else ".")
            )
        runs_on: tuple[str, ...] = getattr(step, "runs_on", ())
        if not runs_on:
            continue
        if index < len(steps) - 1 and not getattr(steps[index + 1], "works_on_builds", False):
            faults.append(
                f"steps[{index + 1}] {steps[index + 1].name!r} can't follow {step.name!r}, whose outcome exists only "
                f"in the form of {' and '.join(runs_on)} and can't be changed any more. Put {step.name!r} last."
            )
        wrong = [name for name in backends if name not in runs_on]
        if wrong:
            faults.append(
                f"{step.name!r} runs on {' and '.join(runs_on)}, not on {' or '.join(wrong)}. "
                f"Write export.backends={','.join(name for name in backends if name in runs_on) or runs_on[0]}."
            )
    return faults


def _trains(step: Technique) -> bool:
    return hasattr(step, "epochs") and getattr(step, "recovery", "") != "none"
