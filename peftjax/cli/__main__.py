"""`python -m peftjax.cli` runs the command `peftjax` where it is not installed."""

import sys

from peftjax.cli import main

sys.exit(main())
