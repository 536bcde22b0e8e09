"""Many runs on one base: python -m experiments.sweep --config configs/x.py --sweep rank --workdir d

It is `peftjax sweep`, and accepts `--config.lr=1e-3` for `--lr 1e-3`. Flags change the config. Then
`sweep_<name>(add)` in the config file adds the runs; or, with --search, `search_<name>(trial)`
draws them with Optuna. Runs that differ only in numbers (rates, seeds, alphas, ranks) train
together in one program. If interrupted, rerun the command: it trains the unfinished runs. Several
processes may run the same command; each takes groups of runs that no other process works on.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('sweep')
