"""Dropout where a network has it."""

import dataclasses
from typing import Any, ClassVar

from experiments.regularizers.base import Regularizer


@dataclasses.dataclass(frozen=True)
class Dropout(Regularizer):
    """Dropout where the network has it.

    In a residual network it is between the two convolutions of every block: Zagoruyko and
    Komodakis, *Wide Residual Networks* (2016), section 2.4, after the normalisation and activation
    of what the second convolution takes. In a recurrent language model it is on the embeddings,
    between the layers and on the outputs: Zaremba, Sutskever and Vinyals, *Recurrent Neural Network
    Regularization* (2014).

    Attributes:
        rate: Share of the values that is set to zero; 0 drops nothing.
    """

    name: ClassVar[str] = "dropout"

    rate: float = 0.3

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: If one is out of its range.
        """
        if not 0 <= self.rate < 1:
            raise ValueError(f"rate must be in [0, 1), not {self.rate}")

    def model(self, **arguments: Any) -> dict[str, Any]:
        """Switch the network's dropout on.

        Args:
            **arguments: Keyword arguments of the model's constructor.

        Returns:
            The arguments with ``dropout_rate``.
        """
        return arguments | {"dropout_rate": self.rate}
