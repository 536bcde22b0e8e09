"""The command `peftjax`: looks at checkpoints and adapters, merges, converts and runs them."""

import sys
from collections.abc import Sequence

from peftjax.cli.parser import parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; 0 if it did what was asked, 2 with one line of text if it could not."""
    arguments = parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f'peftjax {arguments.command}: {error}', file=sys.stderr)
        return 2
    return 0
