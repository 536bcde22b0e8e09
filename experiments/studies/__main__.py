"""Draws the figures of all studies, and writes what their kept rows say into REPRODUCTIONS.md.

    python -m experiments.studies

A study itself runs by `peftjax reproduce study.NAME --workdir FOLDER`.
"""

from experiments.studies import page

if __name__ == '__main__':
    page.write()
