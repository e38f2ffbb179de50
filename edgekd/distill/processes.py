"""The processes and devices that a training runs on, and the random numbers each draws."""

from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import DistributedType

from ..errors import BadInput


def accelerator() -> Accelerator:
    """Return accelerate's view of this process. Raises BadInput for a setup that splits a model over devices."""
    # A long timeout: the others wait while the first one caches the teacher.
    made = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(), InitProcessGroupKwargs(timeout=timedelta(days=1))])
    if made.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise BadInput(
            f"accelerate is configured for {made.distributed_type.value}, which splits a model over devices; students "
            "here fit on one: choose MULTI_GPU or MULTI_CPU in `accelerate config`"
        )
    return made


def reseed(seed: int, step: int, process: int, device: torch.device) -> None:
    """Make dropout and the like depend on the step alone, so that where a run was interrupted does not matter."""
    value = int(np.random.SeedSequence([seed, step, process]).generate_state(1, np.uint64)[0])
    # Not torch.manual_seed(): it costs more than all of this together, every step.
    torch.default_generator.manual_seed(value)
    if device.type == "cuda":
        torch.cuda.manual_seed(value)
    random.seed(value)
    np.random.seed(value % 2**32)


def device_of(accelerator: Accelerator) -> torch.device:
    """Return the process's device; plain "cpu" where accelerate says "cpu:0", which .to() takes for another place."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device
