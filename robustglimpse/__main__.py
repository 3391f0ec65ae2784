"""python -m robustglimpse."""

from robustglimpse.cli import main

main()
