"""Writes the page about a sweep: python -m experiments.report runs/sweep

It is `peftjax report`. A sweep also writes the page when it ends.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('report')
