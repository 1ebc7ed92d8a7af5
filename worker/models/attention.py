"""A layer of the transformer encoder, able to answer for the last steps alone.

Attention Is All You Need (Vaswani et al. 2017, arXiv:1706.03762), in its pre-norm form (Xiong et al. 2020,
arXiv:2002.04745).

Shapes: B windows, T rows, D = d_model, H heads, E = D / H, Q queries.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worker.models.dropout import Dropout

EXPANSION = 4  # width of the feed-forward layer, in d_model


class Block(nn.Module):
    """One pre-norm transformer layer: attention, then a feed-forward network, each added to its input."""

    def __init__(self, d_model: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(d_model)
        self.query = nn.Linear(d_model, d_model)
        self.key_value = nn.Linear(d_model, 2 * d_model)
        self.out = nn.Linear(d_model, d_model)
        self.feed_forward_norm = nn.LayerNorm(d_model)
        self.feed_forward = nn.Sequential(
            nn.Linear(d_model, EXPANSION * d_model), nn.GELU(), nn.Linear(EXPANSION * d_model, d_model)
        )
        self.dropout = Dropout(dropout)
        self.lays_out_keys = False

    def forward(self, x_BTD: Tensor, num_queries: int | None = None) -> Tensor:
        """Transform the last `num_queries` steps (null = all), each attending to all T: [B, Q, D]."""
        normed_BTD = self.attention_norm(x_BTD)
        if num_queries is not None:
            x_BTD = x_BTD[:, -num_queries:]
        x_BQD = x_BTD + self.dropout(self._attend(normed_BTD, x_BTD.shape[1]))
        transformed_BQD: Tensor = x_BQD + self.dropout(self.feed_forward(self.feed_forward_norm(x_BQD)))
        return transformed_BQD

    def _attend(self, normed_BTD: Tensor, num_queries: int) -> Tensor:
        query_BHQE = self._split_heads(self.query(normed_BTD[:, -num_queries:]))
        if num_queries == 1 and normed_BTD.shape[1] > 1 and not self.lays_out_keys:
            return self._attend_by_one(normed_BTD, query_BHQE.squeeze(2))
        key_BTD, value_BTD = self.key_value(normed_BTD).chunk(2, dim=-1)
        attended_BHQE = F.scaled_dot_product_attention(
            query_BHQE, self._split_heads(key_BTD), self._split_heads(value_BTD)
        )
        attended_BQD: Tensor = self.out(attended_BHQE.transpose(1, 2).flatten(2))
        return attended_BQD

    def _attend_by_one(self, normed_BTD: Tensor, query_BHE: Tensor) -> Tensor:
        """Attend with one query a head, keys and values never laid out: [B, 1, D].

        q . (W_k x_t) = (W_k^T q) . x_t, and the sum of a_t (W_v x_t) is W_v times the sum of a_t x_t.
        The bias of the keys moves all scores of a head alike, which softmax does not see.
        """
        heads, depth = query_BHE.shape[1:]
        key_HED, value_HED = self.key_value.weight.view(2, heads, depth, -1)
        _, value_bias_HE = self.key_value.bias.view(2, heads, depth)
        asked_BHD = torch.einsum("bhe,hed->bhd", query_BHE, key_HED)
        seen_BHD = F.scaled_dot_product_attention(
            asked_BHD.unsqueeze(1), normed_BTD.unsqueeze(1), normed_BTD.unsqueeze(1), scale=depth**-0.5
        ).squeeze(1)
        attended_BHE = torch.einsum("bhd,hed->bhe", seen_BHD, value_HED) + value_bias_HE
        attended_B1D: Tensor = self.out(attended_BHE.flatten(1)).unsqueeze(1)
        return attended_B1D

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.heads, -1).transpose(1, 2)


def lay_out_keys(model: nn.Module, is_wanted: bool) -> None:
    """Let every layer of a model that answers one query lay keys and values out: other roundings."""
    for module in model.modules():
        if isinstance(module, Block):
            module.lays_out_keys = is_wanted
