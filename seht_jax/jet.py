"""A variable of a computation and its derivatives along some directions."""

from typing import Any, NamedTuple


class Jet(NamedTuple):
    """A variable and its derivatives along K directions.

    Attributes:
        value: The value.
        velocity: A tuple of one first derivative for each direction; `None` for zeros.
        acceleration: The sum over the directions of the second derivatives; `None` for zero.
        condition: A traced flag, without which the velocity, or the tangent, a constant, is zero at
            run time; `None` where nothing is known.
        tangent: Like the velocity, of a variable that has not passed the mark of the outputs yet
            (`seht_jax.outputs`), before which there are no second derivatives; `None` for zeros.
    """

    value: Any
    velocity: Any = None
    acceleration: Any = None
    condition: Any = None
    tangent: Any = None

    @property
    def moves(self) -> bool:
        """Whether a derivative is not structurally zero."""
        return self.velocity is not None or self.acceleration is not None


def add(*terms: Any) -> Any:
    """Add arrays.

    Args:
        *terms: Arrays of one shape; `None` stands for zeros.

    Returns:
        The sum; `None` if all terms are.
    """
    total = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total
