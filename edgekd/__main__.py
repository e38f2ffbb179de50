"""`python -m edgekd`, and `accelerate launch -m edgekd`."""

from .cli import main

main()
