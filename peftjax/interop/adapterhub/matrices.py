"""AdapterHub's methods on matrices, which are switches of one config."""

from peftjax.interop.adapterhub.dora import read_dora, write_dora
from peftjax.interop.adapterhub.file import File, Part
from peftjax.interop.adapterhub.ia3 import read_ia3, write_ia3
from peftjax.interop.adapterhub.lora import read_lora, write_gated, write_lora
from peftjax.interop.adapterhub.merged import is_merged
from peftjax.interop.adapterhub.vera import read_vera, write_vera
from peftjax.interop.errors import CheckpointError
from peftjax.interop.peft.found import Found


def read(file: File) -> Part:
    """LoRA, gated LoRA, DoRA, VeRA or (IA)³, by the switches."""
    config = file.config
    found = Found(file.hub.model, file.hub.names, config, file.tensors, file.where)
    config.must_be('composition_mode', 'add', 'scale')
    gates, decomposed = file.switch('use_gating'), file.switch('use_dora')
    # The library, too, decides by whether one of them is written with a decimal point.
    vectors = any(type(config.get(field)) is float for field in ('vera_b', 'vera_d'))
    if gates + decomposed + vectors > 1 or (
        config['composition_mode'] == 'scale' and (decomposed or vectors)
    ):
        raise CheckpointError(
            f'{file.where} has several of use_gating, use_dora and vera_d; one is built here'
        )
    if (decomposed or vectors) and any(is_merged(file.hub, n) for n in file.locations('.loras.')):
        raise CheckpointError(
            f'{file.where} has a DoRA or VeRA on one matrix of query, key and value; LoRA and '
            '(IA)³ are read there'
        )
    if config['composition_mode'] == 'scale':
        return read_ia3(file, found, gates)
    if vectors:
        return read_vera(file, found)
    return read_dora(file, found) if decomposed else read_lora(file, found, gates)


WRITERS = {
    **{'lora': write_lora, 'dora': write_dora, 'vera': write_vera},
    **{'ia3': write_ia3, 'gated': write_gated},
}
