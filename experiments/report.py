"""Writes the page about a sweep again: python -m experiments.report runs/sweep

It is `peftjax report`. A sweep writes the page by itself when it ends.
"""

from experiments.command_line import run

if __name__ == '__main__':
    run('report')
