"""Products with the targets of the contrastive loss, without their matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Targets:
    """Products with soft targets without their matrix: sums of the features of each class of equal identities.

    A class is the place of its first member among the sorted identities of the second side, so that no number of
    classes has to leave the device.
    """

    def __init__(
        self, first_NE: Tensor, second_ME: Tensor, identity_N: Tensor, identity_M: Tensor, label_smoothing: float
    ) -> None:
        self._ordered = identity_M.sort().values
        self._padded = functional.pad(self._ordered, (0, 1))
        self._even, self._rest = 1.0 - label_smoothing, label_smoothing
        self._first_CE, self._num_first_C1 = self._sums(first_NE, identity_N)
        self._second_CE, self._num_second_C1 = self._sums(second_ME, identity_M)
        self._mean_first, self._mean_second = first_NE.mean(0), second_ME.mean(0)
        self._ratio = max(1, first_NE.shape[0]) / max(1, second_ME.shape[0])

    def class_of(self, identity: Tensor) -> Tensor:
        """The class of each row; one without an equal on the second side gets the last, which is empty.

        Not by `torch.isin`: on CUDA it counts distinct values, and the host waits for their number.
        """
        place, size = torch.searchsorted(self._ordered, identity), self._ordered.shape[0]
        return torch.where((place < size) & (self._padded[place] == identity), place, size)

    def _sums(self, features: Tensor, identity: Tensor) -> tuple[Tensor, Tensor]:
        place, size = self.class_of(identity), self._ordered.shape[0] + 1
        sums = features.new_zeros(size, features.shape[1]).index_add_(0, place, features)
        counts = features.new_zeros(size, 1).index_add_(0, place, torch.ones_like(features[:, :1]))
        sums[-1], counts[-1] = 0.0, 0.0  # a mean over nothing is NaN: such a row must not train in silence
        return sums, counts

    def sums_of_first(self, class_N: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_j b_j over the equals of each first row, and how many they are."""
        return self._second_CE[class_N], self._num_second_C1[class_N, 0]

    def sums_of_second(self, class_M: Tensor) -> tuple[Tensor, Tensor]:
        """Σ_i a_i over the equals of each second row, and how many they are."""
        return self._first_CE[class_M], self._num_first_C1[class_M, 0]

    def of_first(self, class_N: Tensor, row: float, column: float) -> Tensor:
        """Σ_j (row · t_ij + column · u_ij) b_j."""
        weight_N1 = row / self._num_second_C1[class_N] + column / self._num_first_C1[class_N]
        rest = self._rest * (row + column / self._ratio)
        return self._even * weight_N1 * self._second_CE[class_N] + rest * self._mean_second

    def of_second(self, class_M: Tensor, row: float, column: float) -> Tensor:
        """Σ_i (row · t_ij + column · u_ij) a_i."""
        weight_M1 = row / self._num_second_C1[class_M] + column / self._num_first_C1[class_M]
        rest = self._rest * (row * self._ratio + column)
        return self._even * weight_M1 * self._first_CE[class_M] + rest * self._mean_first
