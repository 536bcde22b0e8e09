"""How many numbers must train? Training inside random subspaces of growing dimension."""
