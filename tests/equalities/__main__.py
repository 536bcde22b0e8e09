"""Prints which equalities hold for which methods on which models, and which are refused.

python -m tests.equalities [METHOD ...]
"""

import sys

from tests.equalities.laws import LAWS
from tests.equalities.methods import METHODS
from tests.equalities.models import MODELS
from tests.equalities.table import cell


def main() -> None:
    chosen = sys.argv[1:] or METHODS
    print('h held, r refused by name, - nothing to compare; ' + ', '.join(LAWS))
    print(f'{"":18}' + ' '.join(f'{name:8}' for name in MODELS))
    said, wrong = set(), 0
    for method in chosen:
        cells = []
        for name in MODELS:
            found = cell(method, name)
            cells.append(''.join(mark for mark, _ in found.values()))
            said |= {f'{method}: {text}' for mark, text in found.values() if mark == 'r'}
            for law, (mark, text) in found.items():
                if mark == 'X':
                    wrong += 1
                    print(f'WRONG {method} on {name}, {law}: {text}')
        print(f'{method:18}' + ' '.join(f'{each:8}' for each in cells), flush=True)
    print('\n'.join(sorted(said)))
    sys.exit(min(wrong, 1))


main()
