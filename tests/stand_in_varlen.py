"""A stand-in for `torch.nn.attention.varlen.varlen_attn`, which needs a GPU: a loop over sequences."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def varlen_reference(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int
) -> Tensor:
    """(T, N, K) each → (T, N, K); it asks of its arguments what the real one does."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32, "flash attention reads them as such"
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    bounds = [starts.tolist() for starts in (cu_seq_q, cu_seq_k)]
    assert bounds[0][0] == 0 and bounds[0][-1] == len(query) and bounds[1][-1] == len(key) == len(value)
    found = []
    for number in range(len(cu_seq_q) - 1):
        (begin, end), (first, last) = (one[number : number + 2] for one in bounds)
        assert end - begin <= max_q and last - first <= max_k
        rows = (query[begin:end], key[first:last], value[first:last])
        found.append(functional.scaled_dot_product_attention(*(one.transpose(0, 1) for one in rows)).transpose(0, 1))
    return torch.cat(found)
