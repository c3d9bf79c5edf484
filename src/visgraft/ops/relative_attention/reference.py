"""Relative attention with every logit in memory: the definition the others are tested against."""

import torch
from torch import Tensor

__all__ = ["relative_attention_reference"]


def relative_attention_reference(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, columns: Tensor
) -> Tensor:
    """Looks up the offset of each pair of positions, in float32 or wider."""
    h, w = query.shape[3:]
    wide = torch.promote_types(query.dtype, torch.float32)
    y, x = torch.arange(h, device=query.device), torch.arange(w, device=query.device)
    below, beside = y - y[:, None] + h - 1, x - x[:, None] + w - 1
    offset = rows[below][:, None, :, None] + columns[beside][None, :, None, :]  # (H, W, H, W, D)
    query = query.to(wide) * query.shape[2] ** -0.5
    logits = torch.einsum("bmdyx,bmdpq->bmyxpq", query, key.to(wide))
    logits = logits + torch.einsum("bmdyx,yxpqd->bmyxpq", query, offset.to(wide))
    attention = logits.flatten(4).softmax(4).view_as(logits)
    return torch.einsum("bmyxpq,bmdpq->bmdyx", attention, value.to(wide)).to(value.dtype)
