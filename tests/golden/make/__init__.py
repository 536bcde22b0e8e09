"""Makes the golden files: what torch's libraries compute, in the form of tests/oracle/cases.py.

    python -m tests.golden.make.WHAT [--check] [FOLDER ...]

WHAT is checkpoints, peft_adapters, hub_adapters, new_tokens, pretrained or nf4; each says in which
versions of which libraries. To add a case, make a folder with its config (config.json of a base,
adapter_config.json of an adapter), in which `architectures` names the class of a base: weights and
inputs that are not there are drawn. What is there stays, and the numbers are computed from the
files alone. With --check nothing is written, and the stored numbers are held to the computed ones.
"""
