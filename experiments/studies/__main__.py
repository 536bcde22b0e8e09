"""Draws the figures of all studies, and writes their results into REPRODUCTIONS.md.

    python -m experiments.studies

It uses the kept rows. `peftjax reproduce study.NAME --workdir FOLDER` runs a study.
"""

from experiments.studies import page

if __name__ == '__main__':
    page.write()
