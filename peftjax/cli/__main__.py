"""`python -m peftjax.cli`, where no command is installed."""

import sys

from peftjax.cli import main

sys.exit(main())
