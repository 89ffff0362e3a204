"""Mixed precision: bfloat16 where the device computes it natively, else float32."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch


def supports_bf16(device: torch.device | str = "cpu") -> bool:
    """Whether bfloat16 is faster than float32 on this device (AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA)."""
    kind = torch.device(device).type
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if kind != "cpu":
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def autocast(device: torch.device | str = "cpu", enabled: bool | None = None) -> AbstractContextManager[object]:
    """Autocast to bfloat16.

    Args:
        device: where the networks run.
        enabled: force on or off; None asks `supports_bf16`.
    """
    wanted = supports_bf16(device) if enabled is None else enabled
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=wanted)
