"""Judges every case below a folder: python -m tests.oracle FOLDER prints a line for each.

Each is equal or wrong, with its errors, or refused, with the library's reason. Ends with 1 if any
is wrong, and with 2 if the folder holds no cases that can be read. `tests.oracle.cases` tells what
is in such a folder.
"""

import sys
from collections import Counter
from pathlib import Path

from tests.oracle.cases import Case, MalformedError, find
from tests.oracle.judge import judge


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print('usage: python -m tests.oracle FOLDER', file=sys.stderr)
        return 2
    try:
        cases, others, unreadable = find(Path(arguments[0]))
    except MalformedError as error:
        print(error, file=sys.stderr)
        return 2
    count = Counter()
    for case in cases:
        word, detail = _line(case)
        count[word] += 1
        print(f'{case.name:40} {word:8} {detail}'[:400], flush=True)
    for name, reason in unreadable.items():
        count['wrong'] += 1
        print(f'{name:40} wrong    {reason}')
    for name, reason in others.items():
        print(f'{name:40} no case  {reason}')
    total = len(cases) + len(unreadable)
    print(
        f'{total} cases: {count["equal"]} equal, {count["wrong"]} wrong, '
        f'{count["refused"]} refused; {len(others)} other adapters'
    )
    return 1 if count['wrong'] else 0


def _line(case: Case) -> tuple[str, str]:
    try:
        verdict = judge(case)
    # Whatever a case does, the others are judged.
    except Exception as error:  # noqa: BLE001
        return 'wrong', f'{type(error).__name__}: {" ".join(str(error).split())}'
    errors = '  '.join(f'{name} {error:.1e}' for name, error in verdict.errors.items())
    reason = ' '.join((verdict.refused or '').split())
    if not errors:
        return 'refused', reason
    return ('wrong' if verdict.wrong else 'equal'), f'{errors}  {reason and f"(refused: {reason})"}'


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
