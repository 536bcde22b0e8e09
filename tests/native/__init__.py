"""Adapters that are trained here, saved, and read by Hugging Face's peft: do the logits agree?

    python -m tests.native.save FOLDER [FAMILY ...]    with peftjax
    python -m tests.golden.make.native FOLDER    with torch, transformers and peft

The second prints the table of methods and families and ends with 1 if any file computes something
else. See `tests.native.cases` for what is tried.
"""
