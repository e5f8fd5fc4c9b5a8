"""The moves of δ from pass to pass: Adam within its clamp, or turns on the clamp's sphere.

Most targets end at their clamp, ‖δ‖ = c ‖t₀‖, so that what is left to find is a direction d, and
Adam's steps of a fixed length are a slow way to find one. `OnSphere` begins where the loss would be
least if it were linear, and turns from there, by the angle at which the loss f of the contexts just
seen would come to 0 if it went on falling as steeply. This is Polyak's step; it holds for few
contexts at a time, since each of them can come to 0 (Loizou et al. 2021, arXiv:2002.10542). Where
a loss does not come to 0, turns get smaller because the largest that is allowed falls.

    first    d = −g / ‖g‖
    then     θ = reach · f / (c ‖t₀‖ ‖t‖)      t = g − (g·d) d, the gradient along the sphere
             m ← momentum · m − θ t / ‖t‖       made tangential at d, and no longer than `largest`
             d ← cos ‖m‖ · d + sin ‖m‖ · m / ‖m‖
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

    delta: what is moved. radius: of each row. moves: how many there are at most. reach: of a turn,
    in Polyak's steps. largest: angles that the first turn and the last may have, in degrees; those
    between fall by an equal share. momentum: share of the last turn kept.
    """

    def __init__(
        self,
        delta: Float[Tensor, "edits hidden"],
        radius: Float[Tensor, "edits 1"],
        *,
        moves: int,
        reach: float,
        largest: tuple[float, float],
        momentum: float,
    ) -> None:
        self._delta, self._radius, self._moves = delta, radius, moves
        self._reach, self._largest, self._share = reach, largest, momentum
        self._made = 0
        self._turn = torch.zeros_like(delta, requires_grad=False)

    @property
    def largest(self) -> float:
        """The angle that the next turn may have, in radians: the first move is none."""
        first, last = self._largest
        done = min(1.0, max(0.0, (self._made - 1) / max(1, self._moves - 2)))
        return radians(first * (last / first) ** done)

    @torch.no_grad()
    def move(self, loss: Float[Tensor, " edits"]) -> None:
        """Move every row once; one without a gradient stays."""
        delta, gradient = self._delta, self._delta.grad
        assert gradient is not None
        norm = delta.norm(dim=-1, keepdim=True)
        begun = norm > 0
        here = delta / norm.clamp_min(_LEAST)
        along = _tangential(gradient, here)
        slope = self._radius * along.norm(dim=-1, keepdim=True)
        theta = self._reach * loss.unsqueeze(1) / slope.clamp_min(_LEAST)
        theta = theta.clamp_max(self.largest)
        turn = _tangential(self._share * self._turn - theta * _unit(along), here)
        size = turn.norm(dim=-1, keepdim=True).clamp_max(self.largest)
        self._turn = torch.where(begun, size * _unit(turn), 0)
        turned = size.cos() * here + size.sin() * _unit(turn)
        direction = torch.where(begun, _unit(turned), -_unit(gradient))
        moved = begun | (gradient.norm(dim=-1, keepdim=True) > 0)
        delta.copy_(torch.where(moved, self._radius * direction, delta))
        self._made += 1

    def standing(self) -> dict[str, Tensor]:
        """The last turn, and how many moves were made."""
        made = torch.tensor(self._made, dtype=torch.float64)
        return {"sphere.turn": self._turn, "sphere.made": made}

    def go_on_from(self, state: Mapping[str, Tensor]) -> None:
        """Stand where an earlier walk stood."""
        self._turn = state["sphere.turn"].to(self._delta).clone()
        self._made = int(state["sphere.made"])


def _tangential(x: Float[Tensor, "edits hidden"], at: Float[Tensor, "edits hidden"]) -> Tensor:
    """Take from vectors their part along some directions."""
    return x - (x * at).sum(-1, keepdim=True) * at


def _unit(x: Float[Tensor, "edits hidden"]) -> Float[Tensor, "edits hidden"]:
    """Vectors at length 1; zeros stay."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
