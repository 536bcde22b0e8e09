"""Prompt tuning: trained embeddings before those of the sequence.

    python -m experiments.main --config configs/prompt_tuning.py --workdir runs/prompt_tuning
    python -m experiments.main --config configs/prompt_tuning.py:paper,row=rte --workdir runs/paper

Paper: Lester et al., Prompt Tuning, 2021 (arXiv:2104.08691), whose numbers for T5 could not be
    read. Number: T0-3B on 32 examples of RTE in Liu et al., T-Few, 2022 (arXiv:2205.05638), table
    4, with both extra losses, median over prompts and samples of examples, interquartile range, 10
    vectors, 41K parameters in encoder and decoder.
Hyperparameters: appendix D of T-Few: 1,000 steps at 0.3. The row superglue has the authors' own:
    rate 0.3, constant (prompt_tuning/configs/runs/prompt_finetune.gin); 100 vectors, batch 32,
    30,000 steps and weight decay 1e-5 are from a reimplementation and not verified in the paper.
    The task is one of SuperGLUE's.
Data: here film reviews, see configs/lora_sentiment.py; the rate is not tuned.
Expected: here accuracy 0.718 on the small budget of REPRODUCTIONS.md, with the rate tuned; at the
    length of this run not measured; the rows of the paper are not run: they need the weights of
    T0-3B or T5 and readers of RTE.
"""

from ml_collections import ConfigDict

from configs import base

ROWS = {'rte': (10, 52.7, 5.4), 'superglue': (100, 0.0, 0.0)}  # vectors; reported, spread


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` as in `base.choose`."""
    choice = base.choose(arg, ROWS)
    if not choice.paper:
        return base.methods(
            base.film_reviews(3e-2, choice.tiny),
            prompt_tuning=_prompt(20, r'embeddings/word_embeddings'),
        )
    length, value, spread = ROWS[choice.row]
    if choice.row == 'rte':
        prompt = _prompt(length, r'embed')
        c = base.methods(base.few_shot(0.3, 1000), head=False, prompt_tuning=prompt)
        return base.published(c, value, spread)
    c = base.text(
        'google/t5-xl-lm-adapt', 'superglue', 0.3, 32, '30000 steps', (512,), task='seq2seq_lm'
    )
    c.schedule, c.optimizer = 'constant', 'adafactor'
    c.adafactor = ConfigDict({'weight_decay_rate': 1e-5, 'multiply_by_parameter_scale': False})
    return base.methods(c, head=False, prompt_tuning=_prompt(length, r'embed'))


def _prompt(length: int, targets: str) -> dict:
    return {'num_virtual_tokens': length, 'init': 'vocabulary', 'targets': targets}
