"""adapter_config.json, read field by field, so that no field is ignored."""

from collections.abc import Callable, Mapping
from typing import Any

from peftjax.interop.errors import CheckpointError

# Fields that do not change what the adapter computes, or that its tensors show too.
_HARMLESS = frozenset(
    {
        *('auto_mapping', 'base_model_name_or_path', 'inference_mode', 'peft_version', 'revision'),
        *('task_type', 'modules_to_save', 'megatron_core', 'runtime_config', 'qalora_group_size'),
        *('init_weights', 'init_lora_weights', 'init_ia3_weights', 'random_seed', 'mask_type'),
        *(
            'init_logits_std',
            'init_vector_bank_bound',
            'projection_prng_key',
            'ensure_weight_tying',
        ),
        *('beta1', 'beta2', 'deltaT', 'tfinal', 'tinit', 'total_step', 'target_r'),
        *('orth_reg_weight', 'num_attention_heads', 'num_layers', 'token_dim'),
        *('tokenizer_name_or_path', 'prompt_tuning_init', 'prompt_tuning_init_text'),
        *('tokenizer_kwargs', 'encoder_dropout', 'encoder_hidden_size', 'encoder_num_layers'),
        *('encoder_reparameterization_type', 'fan_in_fan_out', 'random_loc_seed'),
    }
)
_MISSING = object()


class PeftConfig(Mapping[str, Any]):
    """The fields of the file; a field that is read counts as understood."""

    def __init__(self, raw: Mapping[str, Any], where: str):
        self.raw: Mapping[str, Any] = raw
        self.where: str = where
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Any:
        value = self.get(name, _MISSING)
        if value is _MISSING:
            raise CheckpointError(f'{self.where} lacks the field {name!r}')
        return value

    def __iter__(self) -> Any:
        return iter(self.raw)

    def __len__(self) -> int:
        return len(self.raw)

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        return self.raw.get(name, default)

    def whole(self, name: str, default: Any = _MISSING, *, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self[name] if default is _MISSING else self.get(name, default)
        if type(value) is not int or not least <= value <= 2**31:
            raise CheckpointError(
                f'{self.where}: {name} is {value!r}, no whole number from {least} on'
            )
        return value

    def number(self, name: str, default: Any = _MISSING) -> float:
        """A finite number."""
        value = self[name] if default is _MISSING else self.get(name, default)
        if type(value) not in (int, float) or not abs(value) < 1e30:
            raise CheckpointError(f'{self.where}: {name} is {value!r}, no number')
        return value

    def above_zero(self, name: str) -> float:
        """A finite number above 0."""
        value = self.number(name)
        if not value > 0:
            raise CheckpointError(f'{self.where}: {name} is {value!r}, and not above 0')
        return value

    def plain(self, name: str, load: Callable[[Any], Any]) -> Any:
        """A number, a truth value or a word, converted by `load`."""
        value = self[name]
        if not isinstance(value, (int, float, str)) or len(str(value)) > 40:
            raise CheckpointError(f'{self.where}: {name} is {str(value)[:60]!r}, no number or word')
        try:
            return load(value)
        except ValueError as error:
            raise CheckpointError(f'{self.where}: {name} is {value!r}: {error}') from error

    def must_be(self, name: str, *allowed: Any) -> None:
        """Raises CheckpointError unless the field is absent or has one of the values."""
        value = self.get(name, allowed[0])
        if not any(value == each and type(value) is type(each) for each in (*allowed, None)):
            raise CheckpointError(
                f'{self.where}: {name} is {value!r}, which is not built here; only {allowed[0]!r}'
            )

    def check_all_read(self) -> None:
        """Raises CheckpointError for a field that was not read and is not off."""
        left = {
            name: value
            for name, value in self.raw.items()
            if name not in self._read | _HARMLESS and value not in (None, False, [], {}, '')
        }
        if left:
            raise CheckpointError(
                f'{self.where} asks for {left}, which is not built here for this method'
            )
