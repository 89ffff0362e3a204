"""Corrects a drawn scan: no Lipiodol where none was given, and as much living tumour as was predicted.

The denoiser follows the shares of tissue that it is given only roughly. Where the segmenter reads another tissue in the
drawn scan than was meant, the scan becomes darker or brighter around; then it reads again. So the scan is what carries
the prediction: whoever reads it, a person or a network, needs nothing beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from models.networks.segmenter import Tissue
from models.response import criteria

NEIGHBOURS = 5
"""Edge, in voxels, of the cube over which densities are averaged, and how much alive a voxel looks."""
LEAST_VOXELS = 30
"""As many voxels that are read as they were meant say how dense a tissue is drawn; fewer are noise."""
LEAST_CONTRAST_HU = 25.0
"""Dead tissue is at least so much darker than living tissue. In the arterial phase of the synthetic follow-ups, drawn
tissue differs by 15 to 30."""
CLEARER_HU = 10.0
"""What is corrected goes up to so far beyond the density drawn elsewhere, or the segmenter keeps too much."""


def redraw(
    scan: Tensor,
    before: Tensor,
    mask: Tensor,
    viable: Tensor,
    oiled: Tensor,
    read: Callable[[Tensor], Tensor],
    rounds: int,
) -> Tensor:
    """The scan after some rounds of correction, of which nothing changes outside the mask.

    Where no Lipiodol was given nothing becomes as dense as Lipiodol. Single voxels that were drawn so would else decide
    which of such protocols leaves more of it.

    The segmenter keeps some of its readings. So every round asks for as much more or less as the last reading fell
    short of: the first goes too far for a reader that follows at once, the second brings it back.

    Args:
        scan: (N, X, Y, Z) HU as drawn.
        before: the same patches before treatment, HU.
        mask: (N, X, Y, Z) bool, tumour before treatment.
        viable: (N,) share of the mask's voxels that is to live, in [0, 1].
        oiled: (N,) bool, whether Lipiodol was given.
        read: scans (N, X, Y, Z) in HU -> the segmenter's logits (N, 5, X, Y, Z).
        rounds: at least 1, better 2; each takes one reading.

    Returns:
        (N, X, Y, Z) HU.
    """
    if not mask.any():
        return scan
    box = _box(mask)
    whole, before, mask = scan.clone(), before[:, *box], mask[:, *box]

    def logits_with(part: Tensor) -> Tensor:
        whole[:, *box] = part
        return read(whole)[:, :, *box]

    part = whole[:, *box]
    bare = mask & ~oiled[:, None, None, None]
    part = torch.where(bare, torch.minimum(part, before.clamp(min=criteria().oil_hu)), part)
    logits, share, size = logits_with(part), viable, mask.sum(dim=(1, 2, 3)).clamp(min=1)
    found = logits.argmax(dim=1)
    for left in reversed(range(rounds)):
        living = ((found == Tissue.VIABLE) & mask).sum(dim=(1, 2, 3)) / size
        share = (share + viable - living).clamp(0.0, 1.0)
        meant = tissue_with(logits, mask, share)
        part = torch.stack([_corrected(*one) for one in zip(part, before, mask, meant, found, strict=True)])
        if left:
            found = logits_with(part).argmax(dim=1)
    whole[:, *box] = part
    return whole


def _box(mask: Tensor) -> list[slice]:
    """The part of the patches with all that an average around a voxel of the masks (N, X, Y, Z) needs."""
    reach = NEIGHBOURS // 2
    box = []
    for axis in (1, 2, 3):
        inside = mask.movedim(axis, 0).flatten(1).any(dim=1).nonzero()
        box.append(slice(max(int(inside[0]) - reach, 0), int(inside[-1]) + reach + 1))
    return box


def tissue_with(logits: Tensor, mask: Tensor, viable: Tensor) -> Tensor:
    """The most likely classes of which, inside the mask, a given share is viable.

    Those voxels live around which, on average over a cube of `NEIGHBOURS` voxels, the viable logit lies highest above
    the next one. The mask's other voxels are of their likeliest class but that; outside the mask every voxel is of its
    likeliest class.

    Args:
        logits: (N, 5, X, Y, Z) of the segmenter.
        mask: (N, X, Y, Z) bool, tumour before treatment.
        viable: (N,) share of the mask's voxels, in [0, 1].

    Returns:
        (N, X, Y, Z) int64.
    """
    others = logits.index_fill(1, torch.tensor(int(Tissue.VIABLE), device=logits.device), -torch.inf)
    highest, likeliest = others.max(dim=1)
    margin = _mean_around(logits[:, Tissue.VIABLE] - highest)
    out = logits.argmax(dim=1)
    for own, inside, next_best, above, share in zip(out, mask, likeliest, margin, viable.tolist(), strict=True):
        tissue = next_best[inside]
        order = above[inside].argsort(descending=True, stable=True)
        tissue[order[: round(share * tissue.numel())]] = int(Tissue.VIABLE)
        own[inside] = tissue
    return out


def _corrected(scan: Tensor, before: Tensor, mask: Tensor, meant: Tensor, found: Tensor) -> Tensor:
    """One patch (X, Y, Z), darker or brighter around the voxels of the mask that are not read as meant.

    What is added is smooth, so that the texture stays, and nowhere goes beyond the density of the tissue it leads to.
    Lipiodol stays as it is drawn, and nothing else becomes as dense.
    """
    oil = criteria().oil_hu
    tissue = mask & (scan <= oil)
    wrong = tissue & (meant != found)
    if not wrong.any():
        return scan

    def level(kind: Tissue) -> Tensor | None:
        there = scan[tissue & (meant == found) & (meant == kind)]
        return there.median() if there.numel() >= LEAST_VOXELS else None

    alive, dead, liver = level(Tissue.VIABLE), level(Tissue.NECROTIC), level(Tissue.LIVER)
    if alive is None:
        alive = before[mask].median()
    dark = alive - LEAST_CONTRAST_HU
    dead = dark if dead is None else torch.minimum(dead, dark)
    counted = tissue.to(scan.dtype)[None]  # what lies around the tumour is another tissue
    share = _mean_around(counted).clamp(min=1e-6)
    around = (_mean_around(scan * counted) / share)[0]
    brighter = (alive + CLEARER_HU - around).clamp(min=CLEARER_HU)
    darker = (dead - CLEARER_HU - around).clamp(max=-CLEARER_HU)
    wanted = torch.zeros_like(scan)
    wanted = torch.where(wrong & (meant == Tissue.VIABLE), brighter, wanted)
    wanted = torch.where(wrong & (meant == Tissue.NECROTIC), darker, wanted)
    if liver is not None:
        wanted = torch.where(wrong & (meant == Tissue.LIVER), liver - around, wanted)
    change = (_mean_around(wanted[None]) / share)[0]
    return torch.where(tissue, (scan + change.clamp(darker, brighter)).clamp(max=oil), scan)


def _mean_around(values: Tensor) -> Tensor:
    """Mean (N, X, Y, Z) over a cube of `NEIGHBOURS` voxels, of which only those inside the patch count."""
    mean = values[:, None]
    for axis in range(3):  # one axis after the other is the same mean, in an eighth of the time
        size, pad = [1, 1, 1], [0, 0, 0]
        size[axis], pad[axis] = NEIGHBOURS, NEIGHBOURS // 2
        mean = functional.avg_pool3d(mean, size, 1, pad, count_include_pad=False)
    return mean[:, 0]
