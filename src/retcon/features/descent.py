"""The moves of δ from pass to pass: Adam within its clamp, or turns on the clamp's sphere.

Most targets end at their clamp, ‖δ‖ = c ‖t₀‖, so that what is left to find is a direction d, and
Adam's steps of a fixed length are a slow way to find one. `OnSphere` begins where the loss would be
least if it were linear, and turns from there, by the angle at which the loss f of the contexts just
seen would come to 0 if it went on falling as steeply. This is Polyak's step; it holds for few
contexts at a time, since each of them can come to 0 (Loizou et al. 2021, arXiv:2002.10542). A turn
that went too far, so that the gradient behind it points on along it, makes the largest turn that an
edit may take smaller.

    first    d = −s / ‖s‖                       s = V sign(g) |g|ᵖ, p the `power`
    then     t = g − (g·d) d                    the gradient along the sphere
             u = unit of s − (s·d) d            s = V sign(t) |t|ᵖ
             θ = reach · f / (c ‖t₀‖ t·u)
             ω ← ¾ ω  if t · m > 0              the largest turn; from `largest` on, 3° at least
             m ← momentum · m − min(θ, ω) u     made tangential at d, no longer than ω
             d ← cos ‖m‖ · d + sin ‖m‖ · m / ‖m‖

Plain gradients (p = 1) lie in few coordinates, the same ones for all facts, where what one fact
writes disturbs the next. Signs (p = 0), which are Adam's steps at first, lie in all of them; V, the
`whitening` of ordinary text's gradients (`sensitivity`), keeps away from those that text minds.
"""

from collections.abc import Mapping
from math import radians
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Descent = Literal["adam", "sphere"]
# Divided by in place of 0.
_LEAST = 1e-30
# What is left of an edit's largest turn when one went too far, and the least that it comes to, in
# degrees.
_FALL, _LEAST_TURN = 3 / 4, 3.0


@runtime_checkable
class Walk(Protocol):
    """A way to move δ, a row an edit, against `delta.grad`."""

    def move(self, loss: Float[Tensor, " edits"]) -> None:
        """Move every row once.

        Args:
            loss: of the contexts that were just seen.
        """
        ...

    def standing(self) -> dict[str, Tensor]:
        """State that the next move depends on, beside δ and its gradient."""
        ...

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier walk stood."""
        ...


class WithAdam:
    """Adam, and whatever is longer than the clamp is cut to it.

    delta: what is moved. most: largest length of each row.
    """

    def __init__(
        self, delta: Float[Tensor, "edits hidden"], most: Float[Tensor, "edits 1"], *, lr: float
    ) -> None:
        self._delta, self._most = delta, most
        self._adam = torch.optim.Adam([delta], lr=lr)

    @torch.no_grad()
    def move(self, loss: Float[Tensor, " edits"]) -> None:
        """Move every row once, whatever its loss is."""
        del loss
        self._adam.step()
        norm = self._delta.norm(dim=-1, keepdim=True)
        self._delta.mul_((self._most / norm.clamp_min(_LEAST)).clamp_max(1))

    def standing(self) -> dict[str, Tensor]:
        """Adam's moments and its count of steps."""
        return {f"adam.{name}": value for name, value in self._adam.state[self._delta].items()}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier walk stood."""
        self._adam.state[self._delta] = {
            name.removeprefix("adam."): value.to(self._delta) if value.ndim else value.clone()
            for name, value in state.items()
            if name.startswith("adam.")
        }


class OnSphere:
    """Turns on the sphere of the clamp.

    delta: what is moved. radius: of each row. reach: of a turn, in Polyak's steps. largest: turn of
    each row at first, in degrees. momentum: share of the last turn kept. power: to which each
    coordinate of a gradient is raised. whitening: V; None: the identity.
    """

    def __init__(
        self,
        delta: Float[Tensor, "edits hidden"],
        radius: Float[Tensor, "edits 1"],
        *,
        reach: float,
        largest: float,
        momentum: float,
        power: float = 1.0,
        whitening: Float[Tensor, "hidden hidden"] | None = None,
    ) -> None:
        self._delta, self._radius = delta, radius
        self._reach, self._share, self._power = reach, momentum, power
        self._whitening = None if whitening is None else whitening.to(delta)
        self._largest = torch.full_like(radius, radians(largest))
        self._turn = torch.zeros_like(delta, requires_grad=False)

    @torch.no_grad()
    def move(self, loss: Float[Tensor, " edits"]) -> None:
        """Move every row once; one without a gradient stays."""
        delta, gradient = self._delta, self._delta.grad
        assert gradient is not None
        norm = delta.norm(dim=-1, keepdim=True)
        begun = norm > 0
        here = delta / norm.clamp_min(_LEAST)
        along = _tangential(gradient, here)
        way = _unit(_tangential(self._shaped(along), here))
        slope = self._radius * (along * way).sum(-1, keepdim=True)
        too_far = (along * _tangential(self._turn, here)).sum(-1, keepdim=True) > 0
        smaller = (_FALL * self._largest).clamp_min(radians(_LEAST_TURN)).minimum(self._largest)
        self._largest = torch.where(too_far, smaller, self._largest)
        theta = self._reach * loss.unsqueeze(1) / slope.clamp_min(_LEAST)
        theta = theta.minimum(self._largest)
        turn = _tangential(self._share * self._turn - theta * way, here)
        size = turn.norm(dim=-1, keepdim=True).minimum(self._largest)
        self._turn = torch.where(begun, size * _unit(turn), 0)
        turned = size.cos() * here + size.sin() * _unit(turn)
        direction = torch.where(begun, _unit(turned), -_unit(self._shaped(gradient)))
        moved = begun | (gradient.norm(dim=-1, keepdim=True) > 0)
        delta.copy_(torch.where(moved, self._radius * direction, delta))

    def _shaped(self, gradient: Float[Tensor, "edits hidden"]) -> Tensor:
        """Each coordinate raised to the power, with its sign, and the whole whitened."""
        shaped = gradient.sign() * gradient.abs() ** self._power
        return shaped if self._whitening is None else shaped @ self._whitening

    def standing(self) -> dict[str, Tensor]:
        """The last turn, and the largest that may come."""
        return {"sphere.turn": self._turn, "sphere.largest": self._largest}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier walk stood."""
        self._turn = state["sphere.turn"].to(self._delta).clone()
        self._largest = state["sphere.largest"].to(self._radius).clone()


def _tangential(x: Float[Tensor, "edits hidden"], at: Float[Tensor, "edits hidden"]) -> Tensor:
    """Take from vectors their part along some directions."""
    return x - (x * at).sum(-1, keepdim=True) * at


def _unit(x: Float[Tensor, "edits hidden"]) -> Float[Tensor, "edits hidden"]:
    """Vectors at length 1; zeros stay."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
