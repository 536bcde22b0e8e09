"""A model with its adapter, as a model of lm-eval."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax

import peftjax
from peftjax.evaluation.scorer import Piece, Scorer
from peftjax.train.data.chat_template import write_conversations
from peftjax.train.optional import library

_NEW_TOKENS = 256


def language_model(
    model: peftjax.Model,
    transform: peftjax.PeftTransform,
    adapter: Any,
    frozen: peftjax.Frozen,
    *,
    batch_size: int = 8,
    max_length: int | None = None,
    seed: int = 0,
) -> Any:
    """A decoder with its adapter as an `lm_eval.api.model.TemplateLM`.

    lm-eval splits contexts and continuations into tokens. This model gives `log p(continuation |
    context)` in nats, and whether greedy decoding writes the continuation.

    Args:
        model: a decoder of `peftjax.load`, with its tokenizer.
        transform, adapter, frozen: of the method.
        batch_size: rows in a batch.
        max_length: tokens in the longest row; None for the model's own limit, at most 2048.
        seed: of answers that are sampled with a temperature.

    Raises:
        ValueError: lm-eval is not installed, or the model is no decoder or has no tokenizer.
    """
    base = library('lm_eval.api.model', 'eval', '--tasks').TemplateLM
    if model.tokenizer is None:
        raise ValueError(
            'lm-eval needs a tokenizer, and the checkpoint has none; put its tokenizer.json there'
        )
    if max_length is None:
        max_length = min(int(getattr(model.config, 'max_position_embeddings', 2048)), 2048)
    scorer = Scorer(model, transform, adapter, frozen, length=max_length, batch_size=batch_size)
    made = type('PeftjaxLM', (_LanguageModel, base), {})
    return made(scorer, model.tokenizer, seed)


def evaluate_tasks(
    language: Any,
    tasks: Sequence[str],
    *,
    include: str | os.PathLike[str] | None = None,
    few_shot: int | None = None,
    limit: int | None = None,
    chat: bool = False,
) -> dict[str, dict[str, Any]]:
    """The scores of a model on tasks of lm-eval, by task and metric.

    Args:
        language: the result of `language_model`.
        tasks: names of tasks or of groups of tasks.
        include: a folder with more tasks, as YAML files of lm-eval.
        few_shot: examples before each question; None for the task's own number.
        limit: questions of each task; None for all.
        chat: whether to apply the checkpoint's chat template to the questions.

    Raises:
        ValueError: a task does not exist.
    """
    evaluator = library('lm_eval.evaluator', 'eval', '--tasks')
    manager = library('lm_eval.tasks', 'eval', '--tasks').TaskManager(
        include_path=None if include is None else os.fspath(include)
    )
    known = set(manager.all_tasks)
    unknown = [name for name in tasks if name not in known]
    if unknown:
        raise ValueError(f"lm-eval has no task {unknown[0]!r}; 'lm-eval ls tasks' lists its tasks")
    found = evaluator.simple_evaluate(
        model=language,
        tasks=list(tasks),
        task_manager=manager,
        num_fewshot=few_shot,
        limit=limit,
        apply_chat_template=chat,
        log_samples=False,
        bootstrap_iters=1000,
    )
    return {
        name: {n: float(v) if isinstance(v, float) else v for n, v in scores.items()}
        for name, scores in found['results'].items()
    }


class _LanguageModel:
    """The methods that lm-eval calls; `language_model` adds the base class."""

    def __init__(self, scorer: Scorer, tokenizer: peftjax.Tokenizer, seed: int):
        super().__init__()
        self._scorer, self._words = scorer, tokenizer
        self._key = jax.random.key(seed)
        self._windows = library('lm_eval.utils', 'eval', '--tasks')

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text; 0 if the checkpoint names none."""
        ends = self._words.ends
        return ends[0] if ends else 0

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without a context."""
        begin = self._words.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache."""
        return f'peftjax-{self._words.backend.get_vocab_size()}'

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **options: Any
    ) -> list[int]:
        """The tokens of a text; special tokens are added unless it starts with the begin token."""
        del options
        if add_special_tokens is None:
            begin = self._words.bos_id
            written = '' if begin is None else self._words.backend.id_to_token(begin)
            add_special_tokens = not (written and string.startswith(written))
        return self._words.encode(string, add_special_tokens=add_special_tokens)

    def apply_chat_template(
        self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """A conversation as the checkpoint's chat template writes it."""
        if self._words.chat_template is None:
            raise ValueError('the checkpoint has no chat template; evaluate without chat')
        history = list(chat_history)
        if add_generation_prompt:
            history.append({'role': 'assistant', 'content': '.'})
        [(prompt, whole)] = write_conversations(
            self._words.chat_template, [history], self._words.special
        )
        return prompt if add_generation_prompt else whole

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **options: Any
    ) -> list[tuple[float, bool]]:
        del options
        pieces = [Piece(context, continuation) for _, context, continuation in requests]
        return [(found.total, found.greedy) for found in self._scorer.score(pieces)]

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> list[float]:
        """The log-likelihoods of whole texts, in windows that predict each token once."""
        del options
        pieces, counts = [], []
        for request in requests:
            windows = self._windows.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0], add_special_tokens=False),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._scorer.length,
                context_len=1,
            )
            before = len(pieces)
            pieces += [Piece(*self._windows.make_disjoint_window(each)) for each in windows]
            counts.append(len(pieces) - before)
        totals = iter(found.total for found in self._scorer.score(pieces))
        return [sum(next(totals) for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], **options: Any) -> list[str]:
        """Answers, each up to its first stop text."""
        del options
        settings = [dict(request.args[1]) for request in requests]
        groups: dict[tuple[int, peftjax.Sampling], list[int]] = {}
        for place, each in enumerate(settings):
            count = int(each.get('max_gen_toks', _NEW_TOKENS))
            groups.setdefault((count, _sampling(each)), []).append(place)
        answers: dict[int, str] = {}
        for (count, sampling), places in groups.items():
            self._key, drawn = jax.random.split(self._key)
            written = self._scorer.write(
                [self.tok_encode(requests[place].args[0]) for place in places],
                count=min(count, self._scorer.length - 1),
                ends=self._words.ends,
                sampling=sampling,
                key=drawn,
            )
            for place, tokens in zip(places, written, strict=True):
                answers[place] = _before(self._words.decode(tokens), settings[place].get('until'))
        return [answers[place] for place in range(len(requests))]


def _sampling(settings: Mapping[str, Any]) -> peftjax.Sampling:
    """The sampling that a task asks for; greedy by default."""
    temperature = float(settings.get('temperature') or 0.0)
    if not settings.get('do_sample', temperature > 0) or temperature == 0:
        return peftjax.Sampling()
    return peftjax.Sampling(
        temperature, settings.get('top_k') or None, float(settings.get('top_p') or 1.0)
    )


def _before(text: str, until: str | Sequence[str] | None) -> str:
    """The text before the first stop text.

    Example:
        >>> _before('4. Next: 5', ['Next', '. '])
        '4'
    """
    stops = [until] if isinstance(until, str) else list(until or ())
    return min((text.partition(stop)[0] for stop in stops if stop), key=len, default=text)
