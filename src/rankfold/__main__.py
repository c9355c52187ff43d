"""``python -m rankfold`` is the command line."""

from rankfold.cli.main import main

main()
