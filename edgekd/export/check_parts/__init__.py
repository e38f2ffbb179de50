"""The parts of check.py that open a session, one file a runtime: see check.assemble."""
