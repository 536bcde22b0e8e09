"""Many runs on one base: python -m experiments.sweep --config configs/x.py --sweep rank --workdir d

It is `peftjax sweep`, where `--config.lr=1e-3` may stand for `--lr 1e-3`. The runs are what
`sweep_<name>(add)` in the config file adds, on top of what flags change in the config; or, with
--search, what `search_<name>(trial)` makes of the draws of Optuna. Runs that differ only in numbers
(rates, seeds, alphas, ranks) train together in one program. If interrupted, rerun the command: it
trains what is missing. Started several times, each process takes groups that nobody works on.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('sweep')
