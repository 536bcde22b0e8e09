"""The tables of the page of files, from the tables of `peftjax.interop`."""

from docs._ext.catalogue import methods
from peftjax.interop.adapterhub.files import READERS, WRITERS
from peftjax.interop.peft import kinds


def tables() -> str:
    """What is written of our methods, and what is read of the two libraries."""
    return '\n\n'.join([_ours(), _theirs(), _hub()]) + '\n'


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple('---' for _ in head), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines)


def _named(names: list[str]) -> str:
    return ', '.join(f'`{name}`' for name in names)


# What stands in a file beside another method, or as several of them.
_BESIDE = {
    'select': ('beside a method; of layer norms `LN_TUNING`', 'no'),
    'full': ('beside a method; of layer norms `LN_TUNING`', 'no'),
    'trainable_tokens': ('beside a method, or `TRAINABLE_TOKENS`', 'no'),
    'invertible_adapter': ('no', 'beside a bottleneck'),
    'mam': ('no', 'as a union'),
    'unipelt': ('no', 'as a union'),
}


def _ours() -> str:
    """What `save_adapter` writes of each of our methods."""
    kind_of = {name: kind for kind, each in kinds.KINDS.items() for name in each.write}
    rows, none = [], []
    for name in sorted(methods()):
        peft = f'`{kind_of[name]}`' if name in kind_of else 'no'
        hub = 'yes' if name in WRITERS else 'no'
        peft, hub = _BESIDE.get(name, (peft, hub))
        if name in kinds.UNWRITABLE:
            peft = f'no: {kinds.UNWRITABLE[name]}'
        if (peft, hub) == ('no', 'no'):
            none.append(name)
        else:
            rows.append((f'[`{name}`](/methods/{name}.md)', peft, hub))
    return '\n\n'.join(
        [
            '## Written',
            _table(('method', 'Hugging Face peft, as', 'AdapterHub'), rows),
            f'The other libraries have no file for {_named(none)}; `peftjax.save` keeps them.',
        ]
    )


def _theirs() -> str:
    """What `load_adapter` reads of the library's methods."""
    beside = {'LN_TUNING': '`select`', 'TRAINABLE_TOKENS': '`trainable_tokens`'}
    rows = [
        (f'`{kind}`', _named(sorted(each.write)) or beside.get(kind, 'not written'))
        for kind, each in sorted(kinds.KINDS.items())
    ]
    refused = [f'`{kind}`: {because}.' for kind, because in kinds.UNREADABLE.items()]
    return '\n\n'.join(
        ['## Read, of Hugging Face peft', _table(('`peft_type`', 'written by'), rows), *refused]
    )


def _hub() -> str:
    """What `load_adapter` reads of AdapterHub's architectures."""
    found = sorted(name for name in READERS if name)
    return f'## Read, of AdapterHub\n\nThe architectures {_named(found)}, and unions of them.'
