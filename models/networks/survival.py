"""Survival network, the paper's heuristic: raw log-risk from the scan before, the scan after, tumour burden and record.

It never learns which agents were given: their effect on the tumour comes through the simulation, as the image and the
viable tissue in it (how much of that is the response head's prediction where the preset says so), their toxicity is a
fixed term beside it. The risk is a raw log-hazard (no sigmoid), the aggregator's softmax runs over the tokens.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.networks.preset import SurvivalPreset
from models.networks.record_vector import RECORD_SIZE, record_vector
from models.networks.segmenter import Tissue

BURDEN_SIZE = 4  # log1p(viable ml), log1p(tumour ml before), number of lesions, log2(spacing / 1.5 mm)
_BURDEN_SCALE = (0.25, 0.25, 0.3, 1.0)  # brings each to order one

__all__ = ["BURDEN_SIZE", "RECORD_SIZE", "SurvivalNet", "post_channel", "record_vector"]


def post_channel(labels: Tensor) -> Tensor:
    """Second input channel after treatment: the viable tumour; before treatment it is the tumour mask.

    Args:
        labels: classes of `models.networks.segmenter.Tissue`, any shape.

    Returns:
        float32 of the same shape, 1 where tumour lives, else 0.
    """
    return (labels == Tissue.VIABLE).float()


def _norm(channels: int) -> nn.Module:
    return nn.GroupNorm(min(8, channels), channels)


class _Block(nn.Module):
    """Residual block of MC3: 3x3x3 convolutions in the first stage, 1x3x3 (no mixing along depth) afterwards."""

    def __init__(self, inner: int, outer: int, stride: int, mixes_depth: bool) -> None:
        super().__init__()
        kernel, pad = ((3, 3, 3), (1, 1, 1)) if mixes_depth else ((1, 3, 3), (0, 1, 1))
        step = (1, stride, stride)
        self.body = nn.Sequential(
            nn.Conv3d(inner, outer, kernel, stride=step, padding=pad, bias=False),
            _norm(outer),
            nn.ReLU(inplace=True),
            nn.Conv3d(outer, outer, kernel, padding=pad, bias=False),
            _norm(outer),
        )
        same = stride == 1 and inner == outer
        self.skip: nn.Module = (
            nn.Identity() if same else nn.Sequential(nn.Conv3d(inner, outer, 1, stride=step, bias=False), _norm(outer))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.skip(x))


class _Mc3(nn.Module):
    """MC3-18 (mixed convolutions): depth keeps its resolution after the stem; the result is one token per slice.

    Depth is the first axis of a cube, which runs from left to right: the slices are sagittal, before and after alike.
    """

    def __init__(self, width: int, stem_stride: tuple[int, int, int], input_pool: int) -> None:
        super().__init__()
        self.input_pool = input_pool
        self.stem = nn.Sequential(
            nn.Conv3d(2, width, (3, 7, 7), stride=stem_stride, padding=(1, 3, 3), bias=False),
            _norm(width),
            nn.ReLU(inplace=True),
        )
        stages: list[nn.Module] = []
        inner = width
        for stage in range(4):
            outer = width * 2**stage
            stages.append(_Block(inner, outer, 1 if stage == 0 else 2, mixes_depth=stage == 0))
            stages.append(_Block(outer, outer, 1, mixes_depth=stage == 0))
            inner = outer
        self.stages = nn.Sequential(*stages)

    def forward(self, x: Tensor) -> Tensor:
        if self.input_pool > 1:
            x = F.avg_pool3d(x, self.input_pool)
        features: Tensor = self.stages(self.stem(x))
        return features.mean(dim=(3, 4)).transpose(1, 2)


class _TwoWayLayer(nn.Module):
    """One layer of the two-way transformer: each side attends to the other."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.to_post = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.to_pre = nn.MultiheadAttention(dim, heads, dropout=dropout, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))

    def forward(self, pre: Tensor, post: Tensor) -> tuple[Tensor, Tensor]:
        pre = self.norms[0](pre + self.own(pre, pre, pre, need_weights=False)[0])
        pre = self.norms[1](pre + self.to_post(pre, post, post, need_weights=False)[0])
        pre = self.norms[2](pre + self.mlp(pre))
        post = self.norms[3](post + self.to_pre(post, pre, pre, need_weights=False)[0])
        return pre, post


class GatedAttention(nn.Module):
    """Gated attention pooling (Ilse et al. 2018): a softmax over the *tokens* of each sample weighs them."""

    def __init__(self, dim: int) -> None:
        """Args: dim: length of a token."""
        super().__init__()
        self.value = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1)

    def weights(self, tokens: Tensor) -> Tensor:
        """(N, T, dim) -> (N, T, 1), summing to 1 over T."""
        scores: Tensor = self.score(torch.tanh(self.value(tokens)) * torch.sigmoid(self.gate(tokens)))
        return torch.softmax(scores.float(), dim=1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Weighted mean of the tokens, (N, dim)."""
        return (self.weights(tokens) * tokens).sum(dim=1)


def _positions(count: int, dim: int, like: Tensor) -> Tensor:
    """Sinusoidal positions (1, count, dim)."""
    place = torch.arange(count, dtype=torch.float32, device=like.device)[:, None]
    rate = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32, device=like.device) * (-math.log(1e4) / dim))
    return torch.stack([torch.sin(place * rate), torch.cos(place * rate)], dim=2).reshape(1, count, -1)[:, :, :dim]


class SurvivalNet(nn.Module):
    """Log-risk of one post-treatment state. One encoder for both scans; the pre branch runs once per plan."""

    burden_scale: Tensor

    def __init__(self, preset: SurvivalPreset) -> None:
        """Build with random weights."""
        super().__init__()
        self.preset = preset
        dim = 8 * preset.width
        self.encoder = _Mc3(preset.width, preset.stem_stride, preset.input_pool)
        self.side = nn.Parameter(torch.zeros(2, dim))
        self.layers = nn.ModuleList(_TwoWayLayer(dim, preset.heads, preset.dropout) for _ in range(preset.depth))
        self.pool = GatedAttention(dim)
        fused = BURDEN_SIZE + RECORD_SIZE if preset.fuse_record else 0
        self.image = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 16), nn.GELU(), nn.Dropout(preset.dropout))
        self.head = nn.Sequential(nn.Linear(16 + fused, 64), nn.GELU(), nn.Dropout(preset.dropout), nn.Linear(64, 1))
        self.linear = nn.Linear(fused, 1, bias=False) if fused else None
        # multi-task as in the paper (Cox and OS regression); the plan reads the risk only
        intervals = len(preset.os_edges_months)
        self.os_head = (
            nn.Sequential(nn.Linear(16 + fused, 32), nn.GELU(), nn.Linear(32, intervals)) if intervals else None
        )
        self.register_buffer("burden_scale", torch.tensor(_BURDEN_SCALE))

    def encode_pre(self, x: Tensor) -> Tensor:
        """Pre-treatment branch: [CT in [-1, 1], tumour mask] (N, 2, S, S, S) -> tokens (N, T, dim)."""
        tokens: Tensor = self.encoder(x)
        return tokens

    def forward(self, pre_tokens: Tensor, post: Tensor, burden: Tensor, record: Tensor) -> Tensor:
        """Log-risk.

        Args:
            pre_tokens: (N, T, dim) from `encode_pre`.
            post: [CT in [-1, 1], `post_channel` of the segmentation] after treatment (N, 2, S, S, S).
            burden: (N, 4): log1p(viable ml), log1p(tumour ml before), number of lesions, log2(spacing / 1.5 mm).
            record: (N, RECORD_SIZE) from `record_vector`.

        Returns:
            (N,) raw log-hazard, float32; higher is worse.
        """
        return self.with_survival(pre_tokens, post, burden, record)[0]

    def with_survival(
        self, pre_tokens: Tensor, post: Tensor, burden: Tensor, record: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """As `forward`, and logits (N, intervals) of the discrete-time hazard where the preset has its intervals."""
        post_tokens = self.encoder(post)
        place = _positions(post_tokens.shape[1], post_tokens.shape[2], post_tokens)
        pre = pre_tokens + place + self.side[0]
        post_tokens = post_tokens + place + self.side[1]
        for layer in self.layers:
            pre, post_tokens = layer(pre, post_tokens)
        features = self.image(self.pool(torch.cat([pre, post_tokens], dim=1)))
        known = torch.cat([burden * self.burden_scale, record], dim=1)
        seen = features if self.linear is None else torch.cat([features, known.to(features.dtype)], dim=1)
        risk: Tensor = self.head(seen)
        if self.linear is not None:
            risk = risk + self.linear(known)
        logits = self.os_head(seen).float() if self.os_head is not None else None
        return risk.squeeze(1).float(), logits
