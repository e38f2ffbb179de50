"""What an artifact must hold, and how long it is timed."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from .strict import Strict


class Gate(Strict):
    """What an artifact may lose and still be called deployable."""

    max_drop: float = Field(
        0.01, ge=0, description="of the metric, from the teacher (or the student, without one) to the runtime"
    )
    max_error: float = Field(
        2e-4,
        gt=0,
        description="full precision: largest difference between torch, file and runtime, relative to the largest output",
    )
    min_sqnr_db: float = Field(
        25.0,
        description="quantized: least signal-to-noise ratio of the runtime's outputs against the exact arithmetic of the same file",
    )
    min_fp16_sqnr_db: float = Field(
        30.0,
        description="full precision, where the device computes in float16: least signal-to-noise ratio of its outputs; float16 gives "
        "55-70 dB, NPUs that approximate GELU or Softmax 33-50",
    )
    min_variant_sqnr_db: float = Field(
        10.0, description="quantized without training: least signal-to-noise ratio of its outputs against the student's"
    )
    simulator_samples: int = Field(
        200, ge=1, description="of the test samples, for a device that is simulated here or interpreted: both are slow"
    )

    def tolerance(self, floating: bool, precision: str) -> tuple[float | None, float | None]:
        """Return (largest relative error, least SQNR in dB) of a device's outputs; the one that does not apply is None.

        floating: the variant computes in floating point. precision: in which the device does so, fp32 or fp16.
        """
        if not floating:
            return None, self.min_sqnr_db
        return (self.max_error, None) if precision == "fp32" else (None, self.min_fp16_sqnr_db)


class Bench(Strict):
    """How long and how often the clock runs."""

    min_seconds: float = Field(1.0, gt=0, description="of warm calls, for each artifact")
    min_count: int = Field(40, ge=5, description="warm calls, for each artifact")
    interval: float | None = Field(
        0.04,
        gt=0,
        description="goes on until the 95 % intervals of all ratios (alone: of the median) are no wider; null: not asked",
    )
    launches: int = Field(
        6, ge=1, description="processes for each artifact, one after the other; more until the intervals are narrow"
    )
    max_seconds: float = Field(30.0, gt=0, description="hard limit for each artifact, starting and loading included")
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field((1,), min_length=1, description="of the timed calls")
    threads: int | None = Field(None, ge=1, le=1024, description="of the runtime; every core when absent")
    latency: bool = Field(True, description="time calls one after the other; false: only what follows")
    streams: tuple[Annotated[int, Field(ge=2, le=256)], ...] = Field(
        (), description="timed besides: so many calls at once, the threads split between them"
    )
    sustained_minutes: float = Field(
        0, ge=0, le=24 * 60, description="timed besides: so long without a pause, for each artifact"
    )
    prompt_tokens: int = Field(64, ge=1, description="of the prompt, for models that generate")
    new_tokens: int = Field(32, ge=2, description="generated in a call, for models that generate")
    roofline: bool = Field(
        True, description="measure once what the machine can do (about 10 s), and say how near each artifact comes"
    )
    devices: dict[str, str] = Field(
        {}, description="target -> address of its device, such as ssh://pi@raspberrypi; else this machine"
    )
