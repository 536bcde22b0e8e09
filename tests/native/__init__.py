"""Adapters that are trained here, saved, and read by Hugging Face's peft: do the logits agree?

    python -m tests.native.save FOLDER      with peftjax: the files, our logits, what is refused
    python -m tests.native.read FOLDER      with torch 2.13, transformers 5.23 and peft 0.21.2

The second prints the table of methods and families and ends with 1 if any file computes something
else. See `tests.native.cases` for what is tried.
"""
