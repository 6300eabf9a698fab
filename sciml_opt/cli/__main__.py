"""`python -m sciml_opt.cli`."""

from . import main

main()
