"""Gives damaged or hostile files to every reader, and counts the outcomes.

    python -m benchmarks.fuzz --count 50000
    python -m benchmarks.fuzz --count 2000 --reader gguf --seed 7

Each case copies the files of a reader, changes one of them, and reads. It changes bytes (flipped,
cut, repeated, zeroed, replaced), a field of JSON (another type, a huge number, a pattern that
backtracks, deep lists, control characters), the header of a safetensors file, or a weight (NaN,
infinity). Outcomes are: read, if the reader accepted the files and every weight is finite; refused,
if a ValueError or an OSError names the file or its folder; or a fault, which is printed with its
seed. Faults are an error that names no file, another exception, more than 5 s of processor time or
60 s of wall time, more memory than three times the files plus 200 MB, or a weight that is not
finite.
"""

import argparse
import collections
import faulthandler
import json
import pathlib
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import fuzz_readers
from peftjax.interop.files import finite

SECONDS, HANGS, MEGABYTES, TIMES = 5.0, 60.0, 200, 3
_NUMBERS = (0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, 1e308, -0.0)
_SIZES = (0, 1, 2**31, 2**63, 2**64 - 1)
_TEXTS = ('', ' ', '\x00', '\x1b]0;pwn\x07', '\u202e', 'a' * 5000, '../../etc/passwd', '(.|.)*!')
_PATTERNS = ('.?' * 60 + '!', '(a*)*b', '(?!a).*', '((a{100}){100}){100}', '(', 'a)|(b', '\\')
_RAW = ('NaN', '1e999', '9' * 5000, '[' * 5000 + ']' * 5000, '{"a":1,"a":2}', '"\\ud800"', 'nul')
_PLACE = '\ue000'  # stands for a raw piece until the JSON is written


class Outcome(NamedTuple):
    """The outcome of a case. detail: of a fault."""

    name: str
    detail: str = ''


def bytes_changed(draw: random.Random, content: bytes) -> bytes:
    """Some bytes flipped, replaced, zeroed, repeated or left out, most of them near the start."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        if not data:
            break
        last = min(len(data), 3000 if draw.random() < 0.5 else len(data))
        place = draw.randrange(last)
        kind = draw.choice(['flip', 'replace', 'number', 'zeros', 'repeat', 'drop', 'cut'])
        if kind == 'flip':
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 'replace':
            data[place : place + 4] = draw.randbytes(draw.randint(1, 9))
        elif kind == 'number':
            data[place : place + 8] = struct.pack(
                '<Q', draw.choice([0, 1, 2**31, 2**63, 2**64 - 1])
            )
        elif kind == 'zeros':
            length = draw.randint(1, 512)
            data[place : place + length] = bytes(len(data[place : place + length]))
        elif kind == 'repeat':
            data[place:place] = data[place : place + draw.randint(1, 64)]
        elif kind == 'drop':
            del data[place : place + draw.randint(1, 64)]
        else:
            del data[place:]
    return bytes(data)


def field_changed(draw: random.Random, content: bytes) -> bytes:
    """JSON with one field changed, removed, or replaced by another one."""
    try:
        value = json.loads(content)
    except ValueError:
        return bytes_changed(draw, content)
    places = list(_places(value))
    if not places:
        return bytes_changed(draw, content)
    holder, key = draw.choice(places)
    raw = ''
    kind = draw.choice(['hostile', 'hostile', 'raw', 'gone', 'swapped'])
    if kind == 'gone':
        del holder[key]
    elif kind == 'raw':
        raw, holder[key] = draw.choice(_RAW), _PLACE
    elif kind == 'swapped':
        other, name = draw.choice(places)
        holder[key] = other[name]
    else:
        deep: Any = []
        for _ in range(draw.choice([1, 90])):
            deep = [deep]
        plain = (None, True, [], {}, deep, {'a': deep}, [1] * 1000)
        holder[key] = draw.choice([*_NUMBERS, *_TEXTS, *_PATTERNS, *plain])
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):
        return bytes_changed(draw, content)
    return text.replace(json.dumps(_PLACE), raw).encode()


def _places(value: Any) -> Any:
    """Every (list or object, key) of a value."""
    level = [value]
    while level:
        each = level.pop()
        pairs = each.items() if isinstance(each, dict) else enumerate(each)
        for key, inner in pairs:
            yield each, key
            if isinstance(inner, dict | list):
                level.append(inner)


def tensors_changed(draw: random.Random, content: bytes) -> bytes:
    """A safetensors file with a changed header, or with a weight that is NaN or infinite."""
    (length,) = struct.unpack_from('<Q', content)
    header, data = content[8 : 8 + length], bytearray(content[8 + length :])
    if draw.random() < 0.5 and data:
        place = draw.randrange(0, len(data), 4)
        bad = draw.choice([np.nan, np.inf, -np.inf])
        data[place : place + 4] = np.float32(bad).tobytes()
        return content[: 8 + length] + bytes(data)
    changed = field_changed(draw, header)
    return struct.pack('<Q', len(changed)) + changed + bytes(data)


def change_of(draw: random.Random, file: pathlib.Path) -> Callable[[random.Random, bytes], bytes]:
    """A change for the format of a file, or a change of bytes."""
    if draw.random() < 0.35:
        return bytes_changed
    if file.suffix == '.safetensors':
        return tensors_changed
    if file.suffix in ('.json', '.jsonl') or file.name == 'metadata':
        return field_changed
    return bytes_changed


def case(reader: fuzz_readers.Reader, folder: pathlib.Path, seed: int) -> Outcome:
    """One case: the outcome of a reader on changed files in an empty folder."""
    draw = random.Random(seed)
    shutil.copytree(reader.files, folder, dirs_exist_ok=True)
    files = sorted(path for path in folder.rglob('*') if path.is_file())
    file = draw.choice(files)
    file.write_bytes(change_of(draw, file)(draw, file.read_bytes()))
    size = sum(path.stat().st_size for path in files)
    pathlib.Path('/proc/self/clear_refs').write_text('5')
    before, began = _memory(), time.process_time()
    faulthandler.dump_traceback_later(2 * HANGS, exit=True)
    signal.setitimer(signal.ITIMER_REAL, HANGS)
    try:
        outcome = _read(reader, folder, file)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
    seconds, grown = time.process_time() - began, _memory() - before
    if seconds > SECONDS:
        return Outcome('slow', f'{seconds:.1f} s, {outcome}')
    if grown > TIMES * size + MEGABYTES * 2**20:
        return Outcome('memory', f'{grown / 2**20:.0f} MB for {size} bytes, {outcome}')
    return outcome


def _read(reader: fuzz_readers.Reader, folder: pathlib.Path, file: pathlib.Path) -> Outcome:
    try:
        found = reader.read(folder)
    except (ValueError, OSError) as error:
        text = str(error)
        named = file.name in text or str(folder) in text or folder.name in text
        if not named:
            return Outcome('unnamed', f'{type(error).__name__}: {text[:300]}')
        hidden = any(
            not (each.isprintable() or each in '\n\t' or ord(each) >= 160) for each in text
        )
        return Outcome('unescaped', text[:300]) if hidden else Outcome('refused')
    except Exception as error:  # noqa: BLE001 (any other exception is a fault)
        return Outcome('crash', f'{type(error).__name__}: {str(error)[:300]}')
    for leaf in jax.tree.leaves(found):
        if hasattr(leaf, 'dtype') and not finite.is_finite(np.asarray(leaf)):
            return Outcome('not finite', str(leaf)[:100])
    return Outcome('read')


def _memory() -> int:
    """The peak memory of the process in bytes, since the last reset."""
    text = pathlib.Path('/proc/self/status').read_text()
    return int(text.partition('VmHWM:')[2].split()[0]) * 1024


def run(
    readers: Sequence[fuzz_readers.Reader], count: int, seed: int, seconds: float
) -> dict[str, collections.Counter[str]]:
    """Counts of outcomes by reader; stops early after `seconds`."""
    counts = {reader.name: collections.Counter[str]() for reader in readers}
    weights = [reader.weight for reader in readers]
    for reader in readers:
        reader.read(reader.files)  # Imports happen here and not in a case.
    ends = time.monotonic() + seconds
    for number in range(seed, seed + count):
        [reader] = random.Random(number).choices(readers, weights)
        with tempfile.TemporaryDirectory(prefix='fuzz_') as name:
            outcome = case(reader, pathlib.Path(name), number)
        counts[reader.name][outcome.name] += 1
        if outcome.name not in ('read', 'refused'):
            print(f'{reader.name}, seed {number}: {outcome.name}: {outcome.detail}', flush=True)
        if (number + 1 - seed) % 1000 == 0:
            print(f'tried {number + 1 - seed:,}', file=sys.stderr, flush=True)
        if time.monotonic() > ends:
            break
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--count', type=int, default=50_000)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--seconds', type=float, default=600.0, help='for all cases together')
    parser.add_argument('--reader', action='append', help='may be given again; default: all')
    given = parser.parse_args()

    def late(*_: Any) -> None:
        raise TimeoutError('the reader was stopped')

    signal.signal(signal.SIGALRM, late)
    with tempfile.TemporaryDirectory(prefix='files_') as name:
        made = fuzz_readers.readers(pathlib.Path(name))
        chosen = [each for each in made if not given.reader or each.name in given.reader]
        counts = run(chosen, given.count, given.seed, given.seconds)
    for name, each in counts.items():
        print(f'{name:12} tried {each.total():6,}  {dict(sorted(each.items()))}')
    total = sum(counts.values(), collections.Counter[str]())
    faults = total.total() - total['read'] - total['refused']
    taken = 'read {read:,}, refused {refused:,}'.format_map(total)
    print(f'tried {total.total():,}, {taken}, faults {faults}')
    return 1 if faults else 0


if __name__ == '__main__':
    jax.config.update('jax_platforms', 'cpu')
    sys.exit(main())
