"""Checks every case below a folder: python -m tests.oracle FOLDER prints a table of errors.

A folder holds `<architecture>/base` and `<architecture>/<method>`, as `tests/golden/oracle` does.
"""

import sys
from pathlib import Path

from tests.oracle.cases import compare, read_case
from tests.oracle.converters import CONVERTERS


def main(root: Path) -> int:
    tried = failed = 0
    for folder in sorted(path.parent for path in root.rglob('grads.safetensors')):
        name = folder.relative_to(root).as_posix()
        case = read_case(folder)
        converter = CONVERTERS.get(case.method)
        if converter is None:
            print(f'{name:45} no method here')
            continue
        tried += 1
        try:
            errors = compare(case, converter(case))
            print(f'{name:45}', '  '.join(f'{k} {v:.1e}' for k, v in errors.items()))
        except (AssertionError, ValueError, KeyError, OSError) as error:
            failed += 1
            print(f'{name:45} FAILED {type(error).__name__}: {error}'[:300])
    print(f'{tried} tried, {tried - failed} passed, {failed} failed')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(Path(sys.argv[1])))
