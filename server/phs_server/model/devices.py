"""Which devices there are, and what precision and how many cores they have."""

from __future__ import annotations

import os

import torch

from phs_milvus.contract.errors import ModelError


def resolve_precision(precision: str, device: torch.device) -> str:
    """ "auto": bfloat16 on GPUs and on CPUs with native bfloat16 products, float32 elsewhere."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # From Ampere on; torch.cuda.is_bf16_supported() counts emulation, which is slower than float32.
        native = torch.version.hip is not None or torch.cuda.get_device_capability(device)[0] >= 8
        return "bfloat16" if native else "float32"
    if device.type == "cpu" and _cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def _cpu_has_bfloat16() -> bool:
    """AVX512-BF16 or AMX: bfloat16 is 4-5 times faster than float32 there, and slower elsewhere."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def resolve_devices(devices: str) -> list[str]:
    """Device names out of a comma-separated list; "auto": the first CUDA device where there is one, else the CPU.

    Raises:
        ModelError: a device that torch does not have, or one named twice.
    """
    if devices == "auto":
        return ["cuda:0" if torch.cuda.is_available() else "cpu"]
    names = [name.strip() for name in devices.split(",")]
    for name in names:
        try:
            torch.empty(0, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(f"device '{name}' cannot be used: {str(error).splitlines()[0]}; try cpu") from error
    if len(set(names)) < len(names):
        raise ModelError(f"devices '{devices}' names a device twice")
    return names


def available_cores() -> int:
    """CPU cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
