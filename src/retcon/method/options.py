"""Groups of settings in which locate-then-edit methods differ."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float64
from pydantic import Field
from torch import Tensor

from retcon.algebra.feedback import Process, compressed, largest, rounded
from retcon.algebra.preservation import Preservation
from retcon.errors import InvalidSetting
from retcon.method.solvers import Budgeted, OneShot, Processed, Solver

# ρ as a setting: what `--set ridge=…` takes.
Ridge = Annotated[float, Field(ge=0, allow_inf_nan=False)]
RidgeBatch = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class PreservationOptions:
    """Settings of the metric M₀.

    Attributes:
        base: the `covariance` C of ordinary text; its `null-space` (AlphaEdit, arXiv:2410.02355),
            in which every direction costs the same and outside of which none may be written; or
            `identity`.
        null_threshold: eigenvalues of C below it span the null space.
        null_relative: it is in units of the mean eigenvalue.
        plain: μ, C + (μ/ρ) I penalises the norm of ΔW as well (ENCORE, arXiv:2502.01636); only with
            the covariance.
    """

    base: Literal["covariance", "null-space", "identity"] = "covariance"
    null_threshold: Positive = 2e-2
    null_relative: bool = False
    plain: NotNegative = 0.0

    def __post_init__(self) -> None:
        if self.plain and self.base != "covariance":
            raise InvalidSetting(
                f"plain={self.plain:g} is added to the covariance, and base={self.base} has none: "
                f"the norm of ΔW is what it penalises already. Set plain=0, and its weight by "
                f"the ridge, or take base=covariance."
            )

    @property
    def task(self) -> str:
        """Name of the work for progress: an eigen-decomposition takes far longer than a factor."""
        named = {"null-space": "finding the null space of second moments"}
        return named.get(self.base, "factoring second moments")

    def metric(
        self, moment: Float64[Tensor, "d_in d_in"], *, jitter: float, ridge: float | None
    ) -> Preservation:
        """M₀ of a layer. The moment's memory may be taken.

        Args:
            ridge: ρ, which only `plain` needs.

        Raises:
            NotFinite, SingularCovariance, InvalidSetting: as `Preservation`'s.
        """
        if self.base == "null-space":
            return Preservation.on_null_space(
                moment, self.null_threshold, relative=self.null_relative
            )
        if self.base == "identity":
            return Preservation.identity(moment)
        if self.plain:
            assert ridge is not None
            moment.diagonal().add_(self.plain / ridge)
        return Preservation.of(moment, jitter=jitter, overwrite=True)


@dataclass(frozen=True, kw_only=True)
class ResidualOptions:
    """Settings of the residuals: the part of each target that each layer is to write.

    Attributes:
        spread: over several layers: `divided`, the gap that is left at the last layer by the number
            of layers to come (MEMIT); `forward`, targets at the first layer, whose effect is
            replayed through the others, each of which closes its own gap whole (FE,
            arXiv:2605.00358); `each`, targets at each layer, on the model as the layers before have
            become (BLUE, arXiv:2502.03748).
        anchor_norm: NAS (arXiv:2602.02543): values m + δ get the mean length of those of the first
            batch, longest 5 % apart (`equal`), or at most that (`cap`); a fact whose value is twice
            as long is left out.
        passes: of what one solve has left of the residuals, the rest is written through the same
            write keys, so many times in all, which comes to a smaller ridge (iterated Tikhonov;
            NSE, arXiv:2410.04045, reads keys anew and picks neurons); not with a budget.
        merge_subjects: facts whose prompts are equal up to the subject's end have one key: those
            whose targets are made together (a batch; with `refresh`, all that wait) get one target,
            for all of them, and it is written once (MEMIT-Merge, arXiv:2502.07322).
        tie_subjects: facts about one subject get one target, whatever stands before it: their keys
            are close, and what is written at one is read at all. It is written at each of them, and
            once where they are equal.
    """

    spread: Literal["divided", "forward", "each"] = "divided"
    anchor_norm: Literal["off", "equal", "cap"] = "off"
    passes: Annotated[int, Field(ge=1)] = 1
    merge_subjects: bool = False
    tie_subjects: bool = False

    def __post_init__(self) -> None:
        if self.anchor_norm != "off" and self.spread != "divided":
            raise InvalidSetting(
                f"anchor_norm={self.anchor_norm} bounds the value at the last layer, of which each "
                f"layer writes a share; with spread={self.spread} every layer has one. "
                f"Take spread=divided, or anchor_norm=off."
            )


@dataclass(frozen=True, kw_only=True)
class StepOptions:
    """Settings of steps: what is done to ΔW where edits are carried.

    Attributes:
        process: `bfloat16` rounds it, `rect` keeps the entries of the largest |ΔW / W|, a share
            `keep` of all (arXiv:2401.04700), `prune` takes the logarithm of singular values above
            the largest of W₀ (arXiv:2405.16821, there once, of the sum).
        feedback: what that takes from a step is given back by the next one.
        budget: α of LyapLock (arXiv:2505.15702): the ridge grows by as much as D, the mean square
            change on ordinary text, is above α times what it was after the first batch, and all
            facts are solved for again, which gives back what a step has lost (0: it does not).
    """

    process: Literal["none", "bfloat16", "rect", "prune"] = "none"
    keep: Annotated[float, Field(gt=0, le=1)] = 0.4
    feedback: bool = True
    budget: NotNegative = 0.0

    def __post_init__(self) -> None:
        if self.budget and not self.feedback:
            raise InvalidSetting(
                "feedback=false does nothing with a budget: all facts are solved for anew with "
                "each batch, on the weights as they are, so that what a step has lost comes back. "
                "Leave feedback out, or set budget=0."
            )

    def solver(self, passes: int) -> Solver:
        """The solver that takes such steps.

        Args:
            passes: as of `ResidualOptions`.
        """
        if self.budget:
            return Budgeted(self._process, self.budget)
        plain = OneShot(passes)
        return plain if self.process == "none" else Processed(plain, self._process, self.feedback)

    def _process(self, weight: Float64[Tensor, "d_out d_in"]) -> Process:
        """Post-processing, measured against a matrix."""
        if self.process == "bfloat16":
            return rounded(torch.bfloat16)
        if self.process == "rect":
            return largest(weight, self.keep)
        if self.process == "prune":
            return compressed(float(torch.linalg.matrix_norm(weight, 2)))
        return lambda step: step


def check_together(
    ridge: float,
    metric: PreservationOptions,
    residuals: ResidualOptions,
    step: StepOptions,
    *,
    accumulate: bool,
) -> None:
    """Refuse slots of a method of which one would leave the other nothing to do.

    Raises:
        InvalidSetting: which, and what to set in its place.
    """
    if ridge == 0 and (metric.plain or step.budget):
        raise InvalidSetting(
            "A hard constraint (ridge 0) has no ridge that could be shared out or grow: give "
            "a ridge > 0 with `plain` or `budget`."
        )
    if step.budget and not (accumulate and metric.base == "covariance"):
        raise InvalidSetting(
            "A budget solves for all facts anew, against the covariance: it needs accumulate "
            "and base=covariance."
        )
    if step.budget and residuals.passes > 1:
        raise InvalidSetting(
            f"passes={residuals.passes} does nothing with a budget: all facts are solved for anew, "
            f"once for each batch. Leave passes out, or set budget=0."
        )
