"""A reference interpreter of Core ML's programs: reads the saved .mlpackage and computes it with torch, on any machine.

Core ML runs on Apple's systems alone. Here every operation of the saved program is computed as its documentation says, in
float32, or rounded to float16 after each operation where the program says so. What it does not know is an error.
"""

from .program import Operation, Program, read
from .run import NonFinite, run

__all__ = ["NonFinite", "Operation", "Program", "read", "run"]
