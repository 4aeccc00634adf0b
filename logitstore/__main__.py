"""``python -m logitstore``."""

from .cli import main

main()
