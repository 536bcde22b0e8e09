"""The settings of a run: typed, checked before anything is loaded, and read from any mapping."""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import optax

import peftjax
from peftjax.train.ranges import check_ranges
from peftjax.train.typed import KINDS, SIMPLE, SettingsError, plain, read_as, said, types_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The base model, as `peftjax.load` takes it.

    Attributes:
        source: 'org/name' or 'org/name@revision' on the hub, a folder, or a .gguf file.
        task: the head, as `peftjax.load` names it; None takes the head that the task needs.
        num_labels: number of classes of a new head; None counts them in the data.
        pooling: the input of a head: 'first' token, or 'mean' of all tokens.
        vocab_size: number of tokens, if more than the checkpoint's; new rows are the mean of all.
        tie: False separates a head that the checkpoint ties to the embedding: it becomes a copy.
        dtype: dtype of the computation; None is float32.
        param_dtype: dtype of the weights; None is `dtype`.
        remat: None, 'full', or the name of a policy: recompute activations in the backward pass.
        quantize: None, or a scheme that keeps the base in few bits, such as 'nf4'.
        scan: stack the layers, and compile them once.
        ignore: regular expressions of unknown config fields and tensors that may be dropped.
    """

    source: str = ''
    task: str | None = None
    num_labels: int | None = None
    pooling: str = 'first'
    vocab_size: int | None = None
    tie: bool | None = None
    dtype: str | None = None
    param_dtype: str | None = None
    remat: str | None = None
    quantize: str | None = None
    scan: bool = True
    ignore: tuple[str, ...] = ()

    def arguments(self) -> dict[str, Any]:
        """Arguments of `peftjax.load`: the fields that are set."""
        return {n: v for n, v in dataclasses.asdict(self).items() if v not in (None, ())}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Where the examples are, and how they become batches.

    Attributes:
        source: a .jsonl, .csv, .tsv or .parquet file, with '{split}' in its name if each split has
            its own file; or a data set of the hub, 'hf:org/name#{split}'.
        reader: a published data set that the source holds, such as 'glue_rte'; its columns have the
            names of their roles.
        splits: sources of splits that are not in `source`, by the name of the split.
        columns: the table's columns by their role, such as {'text': 'sentence'}; columns of other
            roles are found by their usual names.
        header: names of the columns of a .csv or .tsv file whose first line is data.
        encoding: of a .csv, .tsv or .jsonl file.
        labels: names of the classes, in order; empty finds them in the data.
        batch_size: examples in a step.
        eval_batch_size: examples in a batch of an evaluation.
        lengths: each batch is padded to the least of these that fits; empty takes some that fit the
            data. Texts are cut at the greatest one.
        limit: examples kept of each split; 0 keeps all.
        packing: put several examples into one row, if the task can.
        chat_template: a Jinja template, or a file that holds one; None is the checkpoint's own.
        today: the date for chat templates that write one, such as '2026-11-28'; empty is the day
            of each start.
        options: further options of the task, by name.
    """

    source: str = ''
    reader: str = ''
    splits: Mapping[str, str] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, str] = dataclasses.field(default_factory=dict)
    header: tuple[str, ...] = ()
    encoding: str = 'utf-8'
    labels: tuple[str, ...] = ()
    batch_size: int = 32
    eval_batch_size: int = 64
    lengths: tuple[int, ...] = ()
    limit: int = 0
    packing: bool = False
    chat_template: str | None = None
    today: str = ''
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshSettings:
    """The number of devices of the mesh, by what they share.

    Attributes:
        data: devices that share the batch.
        fsdp: devices that share the batch and the base.
        tensor: devices that share every product.
    """

    data: int = 1
    fsdp: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """All settings of a run.

    Attributes:
        model, data, mesh: see `ModelSettings`, `DataSettings` and `MeshSettings`.
        task: what is learned: a name of `peftjax.train.tasks`, or 'package.module:function'.
        methods: functions of peftjax, chained in this order. A method on matrices takes all of them
            (targets='all-linear') and rank 8, unless its section says otherwise.
        sections: arguments of methods, of the optimiser and of other functions, by their name.
        found: arguments of methods that are computed before training from the model and the data,
            `{method: {argument: function}}`.
        penalties: functions of the adapter that are added to the loss, and their weights.
        lr: the peak learning rate.
        rates: learning rates of single methods, as multiples of lr.
        schedule: how the rate falls after the warm-up: linear, cosine or constant.
        warmup: length of the warm-up: below 1 a share of the run, otherwise a number of steps.
        clip_norm: the greatest norm of the gradient; 0 does not clip.
        optimizer: a function of optax.
        around: functions of peftjax.train that take the optimiser and return one.
        accumulate: parts of a batch, one after another, that make one step.
        duration: '3 epochs', '500 steps' or '10000 examples'.
        log_every: how often the loss is logged; written as `duration` is.
        eval_every: how often the validation split is scored; written as `duration` is.
        save_every: how often a checkpoint is saved; written as `duration` is.
        best: the score that chooses the best checkpoint, such as 'accuracy'; None is the task's
            own. A minus sign in front means that the least value is the best.
        trackers: programs that get the numbers, by name, or as 'package.module:function'.
        init_from: a folder with an adapter to start from, ours or of another library.
        seed: decides the adapter's start, a new head, and the order of the examples.
        published: a number in a paper to compare with; not read by the run.
    """

    model: ModelSettings = dataclasses.field(default_factory=ModelSettings)
    task: str = 'classification'
    data: DataSettings = dataclasses.field(default_factory=DataSettings)
    methods: tuple[str, ...] = ('lora',)
    sections: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    found: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    penalties: Mapping[str, float] = dataclasses.field(default_factory=dict)
    lr: float = 1e-3
    rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    schedule: str = 'linear'
    warmup: float = 0.0
    clip_norm: float = 0.0
    optimizer: str = 'adamw'
    around: tuple[str, ...] = ()
    accumulate: int = 1
    mesh: MeshSettings = dataclasses.field(default_factory=MeshSettings)
    duration: str = '3 epochs'
    log_every: str = '20 steps'
    eval_every: str = '1 epoch'
    save_every: str = '1 epoch'
    best: str | None = None
    trackers: tuple[str, ...] = ('tensorboard',)
    init_from: str | None = None
    seed: int = 0
    published: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def section(self, name: str) -> Mapping[str, Any]:
        """The arguments of a function by its name; empty if none are set."""
        return self.sections.get(name, {})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; `read_settings` takes them back."""
        whole = plain(dataclasses.asdict(self))
        return {**{k: v for k, v in whole.items() if k != 'sections'}, **whole['sections']}

    def change(self, changes: Mapping[str, Any]) -> 'Settings':
        """The settings with some fields changed, by dotted names: `{'lora.rank': 4}`.

        A name under a method, the optimiser or another function in use is an argument of it.

        Raises:
            SettingsError: no such field (the message has near names); a value of another type.
        """
        made = self.to_dict()
        for name, value in changes.items():
            *above, last = name.split('.')
            place: Any = made
            for part in above:
                place = place.setdefault(part, {}) if isinstance(place, dict) else None
                if place is None or not isinstance(place, dict):
                    raise SettingsError(f'no setting {name!r}; {near(name, self)}')
            place[last] = plain(value)
        try:
            return read_settings(made)
        except SettingsError as error:
            raise SettingsError(str(error)) from None


def read_settings(config: Any) -> Settings:
    """Settings from a mapping, such as a ConfigDict or the content of a JSON file.

    A field that `Settings` does not have holds the arguments of a function that `methods`,
    `optimizer`, `around`, `penalties` or `found` names.

    Raises:
        SettingsError: a field that nothing reads (the message has near names); a value of another
            type; a number outside of its range; an unknown optimiser or schedule.

    Example:
        >>> read_settings({'lr': 0.01, 'lora': {'rank': 4}}).section('lora')
        {'rank': 4}
        >>> read_settings({'learing_rate': 0.01})
        Traceback (most recent call last):
        peftjax.train.typed.SettingsError: no setting 'learing_rate'; near names: ...
    """
    given = plain(config)
    fields = {field.name for field in dataclasses.fields(Settings)} - {'sections'}
    own = {name: value for name, value in given.items() if name in fields}
    rest = {name: value for name, value in given.items() if name not in fields}
    settings = read_as(Settings, own, '')
    settings = dataclasses.replace(settings, sections=rest)
    # A function of peftjax.train.found may share the name of a public one, but not its arguments.
    found = {name for each in settings.found.values() for name in each.values()}
    used = {*settings.methods, settings.optimizer, *settings.around, *found}
    for name, arguments in rest.items():
        known = name in used or _function(name) is not None
        if not known or not isinstance(arguments, dict):
            raise SettingsError(f'no setting {name!r}; {near(name, settings)}')
        if name not in found:
            _check_arguments(name, arguments, settings)
    check_ranges(settings)
    return settings


def near(name: str, settings: Settings) -> str:
    """The settings with names like this one, for an error message."""
    return f'near names: {difflib.get_close_matches(name, names(settings), n=5, cutoff=0)}'


def names(settings: Settings) -> list[str]:
    """Dotted names of all settings, and of arguments of the functions in use."""
    found = list(_names(Settings, ''))
    for function in (*settings.methods, *settings.sections):
        found += [f'{function}.{argument}' for argument in arguments_of(function)]
    return list(dict.fromkeys(found))


def arguments_of(function: str) -> list[str]:
    """Names of the arguments of a public function; empty if there is no such function."""
    made = _function(function)
    return [] if made is None else list(inspect.signature(made).parameters)


def _function(name: str) -> Callable[..., Any] | None:
    """The function of that name whose arguments a section may hold; None if there is none."""
    for module in (peftjax, peftjax.train):
        if name in module.__all__ and callable(getattr(module, name)):
            return getattr(module, name)
    return (
        None
        if name.startswith('_') or not callable(getattr(optax, name, None))
        else getattr(optax, name)
    )


def _check_arguments(name: str, arguments: Mapping[str, Any], settings: 'Settings') -> None:
    function = _function(name)
    if function is None:
        return  # An unknown function is reported where it is used.
    known = inspect.signature(function).parameters
    if any(each.kind is each.VAR_KEYWORD for each in known.values()):
        return
    for argument, value in arguments.items():
        if argument not in known:
            whole = f'{name}.{argument}'
            close = difflib.get_close_matches(argument, known, n=5, cutoff=0)
            found = [f'{name}.{each}' for each in close]
            raise SettingsError(f'no setting {whole!r}; near names: {found}')
        kind = SIMPLE.get(known[argument].annotation)
        if kind is not None and not KINDS[kind](value) and value is not known[argument].default:
            raise SettingsError(f'{name}.{argument} does not take {value!r}; write {said(kind)}')


def _names(kind: Any, prefix: str) -> Iterable[str]:
    for name, field in types_of(kind).items():
        if name != 'sections':
            inner = dataclasses.is_dataclass(field)
            yield from _names(field, f'{prefix}{name}.') if inner else [f'{prefix}{name}']
