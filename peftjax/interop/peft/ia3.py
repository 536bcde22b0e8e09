"""(IA)³, in and out."""

from typing import Any

from peftjax.interop.peft.found import Found, Part, bias_named, literal, meant_by
from peftjax.interop.peft.names import ROOT, Names, window
from peftjax.interop.peft.written import Written, common, conv1d, linear_alone, modules_of
from peftjax.methods.structured.ia3 import ia3


def read_ia3(found: Found) -> Part:
    config = found.config
    modules = found.take({'l': '.ia3_l'})
    found.check_targets(modules)
    feedforward = config.get('feedforward_modules') or []
    named = {}
    for module, arrays in modules.items():
        scale = arrays['l'].reshape(-1)
        fed = bool(feedforward) and meant_by(module.removeprefix(ROOT), feedforward)
        named[module] = (
            {'input': scale} if fed else bias_named(found, module, {'output': scale}, 'output')
        )
    entries = found.entries('ia3', named)
    fed = [path for path, entry in entries.items() if 'input' in entry]
    scaled = [path for path in entries if path not in fed]
    return ia3(targets=literal(scaled), feedforward=literal(fed)), entries


def write_ia3(model: Any, names: Names, arguments: Any, entries: Any, part: Any) -> Written:
    del model, arguments, part
    # The library scales convolutions of images, too.
    images = {path for path in entries if len(window(names.slots[path])) == 2}
    linear_alone(names, set(entries) - images)
    tensors, fed = {}, []
    for module, arrays in modules_of(names, entries).items():
        ((name, scale),) = arrays.items()
        if name == 'input':
            fed.append(module)
        place = names.place_of_module(module)
        assert place is not None
        shape = (1, -1) if name == 'input' else (-1, 1)
        image = place.slot.path in images
        tensors[f'{ROOT}{module}.ia3_l'] = scale.reshape((1, -1, 1, 1) if image else shape)
    fields = common(names, 'IA3', modules_of(names, entries))
    # The library looks for each of them among the targets, by the names there.
    short = {module.rpartition('.')[2] for module in fed}
    inside = short <= set(fields['target_modules'])
    return tensors, {
        **fields,
        'feedforward_modules': sorted(short if inside else fed),
        'fan_in_fan_out': conv1d(names, entries),
    }
