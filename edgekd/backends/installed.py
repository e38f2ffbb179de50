"""Whether the packages of a runtime are here, and whether they work: an installation can be there and broken."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import logging
import warnings

_tried: dict[str, str | None] = {}
"""Module -> why it cannot be imported; None when it can."""


def missing(module: str, how: str) -> str | None:
    """Say why a module cannot be used here, and what to do; None when it can, as far as was found out.

    It is looked for, not imported, which would take seconds; what `broken` has tried is remembered. how: the command that installs it.
    """
    if importlib.util.find_spec(module) is None:
        return f"{module} is not installed here: {how}"
    return _tried.get(module)


def broken(module: str) -> str | None:
    """Import a module that is installed, once, and say why that fails; None when it works, or there is none."""
    if module not in _tried and importlib.util.find_spec(module) is not None:
        _tried[module] = None
        before = logging.root.manager.disable
        logging.disable(logging.CRITICAL)  # coremltools has much to say
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stderr(io.StringIO()),
                contextlib.redirect_stdout(io.StringIO()),
            ):
                warnings.simplefilter("ignore")
                importlib.import_module(module)
        except Exception as error:  # a library that is not there, another NumPy: each fails in its own way
            said = (str(error).strip().splitlines() or [""])[0]
            _tried[module] = (
                f"{module} is installed here and cannot be imported ({type(error).__name__}: {said}): mend it, or install it anew: "
                f"pip install --force-reinstall {module}"
            )
        finally:
            logging.disable(before)
    return _tried.get(module)
