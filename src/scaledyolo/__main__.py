"""`python -m scaledyolo` is the command line."""

import sys

from scaledyolo.cli import main

sys.exit(main())
