"""Adapters in the files of Hugging Face's peft, a kind of method a file."""
