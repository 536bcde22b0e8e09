"""Trained models on the tasks of lm-eval, EleutherAI's evaluation harness (extra `eval`)."""
