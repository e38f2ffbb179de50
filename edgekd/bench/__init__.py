"""The clock: how fast artifacts are, measured so that the number means something. README.md has the definitions.

>>> from edgekd import bench, recipe
>>> things = [bench.thing_from(Path("fp32.onnx")), bench.thing_from(Path("int8.onnx"))]  # doctest: +SKIP
>>> measurements, comparisons = bench.measure(things, recipe.Bench(), Path("measurements"))  # doctest: +SKIP
>>> comparisons[0]["verdict"]  # doctest: +SKIP
'int8 is 1.31x faster than fp32 (1.27-1.35)'
"""

from .clock import DEFINITIONS
from .stage import fill, measure_paths, measure_suite
from .things import Thing, thing_from
from .timing import measure

__all__ = ["DEFINITIONS", "Thing", "fill", "measure", "measure_paths", "measure_suite", "thing_from"]
