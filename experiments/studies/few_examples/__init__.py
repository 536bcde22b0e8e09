"""How many examples do methods need? Accuracy over the number of examples."""
