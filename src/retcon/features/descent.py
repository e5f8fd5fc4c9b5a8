"""The moves of δ from pass to pass: Adam within its clamp, or turns on the clamp's sphere.

Most targets end at their clamp, ‖δ‖ = c ‖t₀‖, so that what is left to find is a direction d, and
Adam's steps of a fixed length are a slow way to find one. `OnSphere` begins where the loss would be
least if it were linear, and turns from there, by an angle θ that falls from step to step:

    first    d = −g / ‖g‖
    then     m ← momentum · m + t / ‖t‖        t = g − (g·d) d, the gradient along the sphere
             d ← cos θ · d − sin θ · m / ‖m‖   m made tangential at d first
"""

from collections.abc import Mapping
from math import cos, radians, sin
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

Descent = Literal["adam", "sphere"]


@runtime_checkable
class Walk(Protocol):
    """A way to move δ, a row an edit, against `delta.grad`."""

    def move(self) -> None:
        """Move every row once."""
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
    def move(self) -> None:
        """Move every row once."""
        self._adam.step()
        norm = self._delta.norm(dim=-1, keepdim=True)
        self._delta.mul_((self._most / norm.clamp_min(1e-30)).clamp_max(1))

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

    delta: what is moved. radius: of each row. moves: how many there are at most. first, last: the
    angles of the first and the last turn, in degrees. momentum: share of the last direction kept.
    """

    def __init__(
        self,
        delta: Float[Tensor, "edits hidden"],
        radius: Float[Tensor, "edits 1"],
        *,
        moves: int,
        angles: tuple[float, float],
        momentum: float,
    ) -> None:
        self._delta, self._radius, self._moves = delta, radius, moves
        self._angles, self._share = angles, momentum
        self._momentum = torch.zeros_like(delta, requires_grad=False)
        self._made = 0

    @property
    def angle(self) -> float:
        """Angle of the next turn, in degrees: the first move is none, the last turn the least."""
        first, last = self._angles
        done = (self._made - 1) / max(1, self._moves - 2)
        return first + (last - first) * min(1.0, max(0.0, done))

    @torch.no_grad()
    def move(self) -> None:
        """Move every row once; one without a gradient stays."""
        delta, gradient = self._delta, self._delta.grad
        assert gradient is not None
        norm = delta.norm(dim=-1, keepdim=True)
        begun = norm > 0
        here = delta / norm.clamp_min(1e-30)
        along = _tangential(gradient, here)
        self._momentum = _tangential(self._share * self._momentum + _unit(along), here)
        theta = radians(self.angle)
        turned = cos(theta) * here - sin(theta) * _unit(self._momentum)
        direction = torch.where(begun, _unit(turned), -_unit(gradient))
        moved = begun | (gradient.norm(dim=-1, keepdim=True) > 0)
        delta.copy_(torch.where(moved, self._radius * direction, delta))
        self._momentum *= begun
        self._made += 1

    def standing(self) -> dict[str, Tensor]:
        """The direction kept, and how many moves were made."""
        made = torch.tensor(self._made, dtype=torch.float64)
        return {"sphere.momentum": self._momentum, "sphere.made": made}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier walk stood."""
        self._momentum = state["sphere.momentum"].to(self._delta).clone()
        self._made = int(state["sphere.made"])


def _tangential(x: Float[Tensor, "edits hidden"], at: Float[Tensor, "edits hidden"]) -> Tensor:
    """Take from vectors their part along some directions."""
    return x - (x * at).sum(-1, keepdim=True) * at


def _unit(x: Float[Tensor, "edits hidden"]) -> Float[Tensor, "edits hidden"]:
    """Vectors at length 1; zeros stay."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-30)
